"""Freed memory is kept inside the block, and given back at its end; in a process of its own, whose memory has no history."""

import os
import subprocess
import sys
import textwrap

import pytest

from brainspeech import memory

SCRIPT = """
    from brainspeech import memory

    MB = 2**20

    def taken():
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("RssAnon:"))

    def make_and_free():
        bytes(range(256)) * (200 * MB // 256)
        return (taken() - before) // MB

    def fail():
        with memory.kept():
            make_and_free()
            raise KeyError

    before = taken()
    print(make_and_free() < 20)
    for _ in range(2):
        with memory.kept() as keeps:
            print(keeps)
            print(make_and_free() > 180)
        print((taken() - before) // MB < 20)
        print(make_and_free() < 20)
    try:
        fail()
    except KeyError:
        print((taken() - before) // MB < 20)
"""


@pytest.mark.skipif(memory._glibc() is None, reason="needs glibc")
def test_freed_memory_is_kept_and_then_given_back():
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(SCRIPT)], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.stdout.split() == ["True"] * 10


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(os, "confstr", lambda name: "musl 1.2")
    with memory.kept() as keeps:
        assert not keeps
