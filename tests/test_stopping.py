"""Signals: an end at once, an end at the next boundary, and handlers that are put back."""

import os
import signal
import threading

import pytest

from brainspeech import stopping


@pytest.fixture(autouse=True)
def _handlers_stay():
    before = {signum: signal.getsignal(signum) for signum in stopping.SIGNALS}
    yield
    assert {signum: signal.getsignal(signum) for signum in stopping.SIGNALS} == before


def send(*signums):
    for signum in signums:
        os.kill(os.getpid(), signum)


def test_sigterm_ends_a_block_at_once_and_what_is_open_is_closed():
    closed = []

    def work():
        try:
            send(signal.SIGTERM)
        finally:
            closed.append(True)

    with pytest.raises(stopping.Stopped, match=r"SIGTERM\. What was finished is kept") as error, stopping.at_once():
        work()
    assert error.value.signum == signal.SIGTERM
    assert closed
    assert not isinstance(error.value, Exception)  # no `except Exception` takes it for an error


@pytest.mark.parametrize("signum", stopping.SIGNALS)
def test_a_boundary_is_waited_for(signum):
    with stopping.at_once(), stopping.at_boundary() as request:
        assert not request.signum
        send(signum)
        assert request.signum == signum
        send(signal.SIGTERM)  # a queue may send it twice
        assert request.signum == signum


def test_a_second_interrupt_does_not_wait():
    with pytest.raises(KeyboardInterrupt), stopping.at_boundary():
        send(signal.SIGINT, signal.SIGINT)


def test_a_block_within_another_gives_the_signals_back_to_it():
    with stopping.at_once():
        with stopping.at_boundary() as request:
            pass
        with pytest.raises(stopping.Stopped):
            send(signal.SIGTERM)
        assert not request.signum


def test_outside_of_the_main_thread_nothing_is_installed():
    seen = []

    def work():
        with stopping.at_once(), stopping.at_boundary() as request:
            seen.append((signal.getsignal(signal.SIGTERM), request.signum))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(signal.getsignal(signal.SIGTERM), 0)]
