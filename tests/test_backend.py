"""How a machine computes: flags that are put back, a compiler that is missed, memory that does not suffice."""

import pytest
import torch

from brainspeech import backend


def test_tf32_holds_inside_the_block_only(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    before = flags()
    with backend.tf32(True):
        assert flags() == (True, True)
        with backend.tf32(False):
            assert flags() == (False, False)
        assert flags() == (True, True)
    assert flags() == before
    failing = backend.tf32(not before[0])
    failing.__enter__()
    assert flags() != before
    assert not failing.__exit__(KeyError, KeyError(), None)
    assert flags() == before


def flags():
    return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32


def test_without_a_compiler_it_is_said_what_is_missing(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(RuntimeError, match=r"compile=True needs a C\+\+ compiler, got no no-such-compiler"):
        backend.compiled(torch.nn.Identity(), torch.device("cpu"))


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nGPU 0 has ..."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried to allocate 2 GiB"),
    ],
    ids=["gpu", "cpu"],
)
def test_memory_that_does_not_suffice(error):
    with pytest.raises(RuntimeError, match=r"for batches of 256 segments: .*allocate 2 GiB\. Lower batch_size"), backend.roomy(256):
        raise error
    with pytest.raises(RuntimeError, match=r"^another$"), backend.roomy(256):
        raise RuntimeError("another")


def test_seeds():
    torch.manual_seed(1)
    wanted = torch.rand(2)
    torch.manual_seed(1)
    with backend.seeded(5):
        first = torch.rand(2)
        backend.reseed((1, 2))
        other = torch.rand(2)
    assert torch.equal(torch.rand(2), wanted)
    with backend.seeded(5):
        assert torch.equal(torch.rand(2), first)
        backend.reseed((1, 2))
        assert torch.equal(torch.rand(2), other)
        backend.reseed((1, 3))
        assert not torch.equal(torch.rand(2), other)
