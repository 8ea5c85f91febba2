"""What SIGTERM and Ctrl-C do: end the run where it stands, or let the step that is being taken be finished first."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(KeyboardInterrupt):
    """A signal ended the run; its text says what is kept and how to go on.

    No Exception, so that nothing takes it for an error of its own.

    Attributes
    ----------
    signum : int
        Exit with 128 + signum, as a shell has it: 143 for SIGTERM, 130 for Ctrl-C.
    """

    def __init__(self, message: str, signum: int):
        super().__init__(message)
        self.signum = int(signum)


class Request:
    """Whether a signal asked for an end; 0 as long as none did."""

    signum: int = 0


def name(signum: int) -> str:
    """Name a signal as its sender would."""
    return "Ctrl-C" if signum == signal.SIGINT else signal.Signals(signum).name


@contextmanager
def at_once() -> Iterator[None]:
    """Let SIGTERM end the block as Ctrl-C does: by an exception, so that what is half-written is removed on the way out."""

    def stop(signum: int, frame: FrameType | None) -> NoReturn:
        raise Stopped("stopped by SIGTERM. What was finished is kept; the same command goes on from there.", signum)

    with _handled({signal.SIGTERM: stop}):
        yield


@contextmanager
def at_boundary() -> Iterator[Request]:
    """Let SIGTERM and Ctrl-C only ask for an end, which the block looks out for; a second Ctrl-C has its usual effect.

    A second SIGTERM has none: launchers and queues send it twice.
    """
    request = Request()
    usual = signal.getsignal(signal.SIGINT)

    def ask(signum: int, frame: FrameType | None) -> None:
        request.signum = request.signum or signum
        if signum == signal.SIGINT:
            signal.signal(signal.SIGINT, usual)

    with _handled(dict.fromkeys(SIGNALS, ask)):
        yield request


@contextmanager
def _handled(handlers: dict[signal.Signals, Callable[[int, FrameType | None], None]]) -> Iterator[None]:
    """Install handlers inside the block; outside of the main thread, where Python allows none, do nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {signum: signal.signal(signum, handler) for signum, handler in handlers.items()}
    try:
        yield
    finally:
        for signum, handler in before.items():
            # None: it was installed by something other than Python, and cannot be put back from here.
            signal.signal(signum, signal.SIG_DFL if handler is None else handler)
