"""Many candidates, half precision, compiled code: the same loss."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from paper_loops import make_vectors
from torch.utils._python_dispatch import TorchDispatchMode

from brainspeech import losses

IDS = torch.tensor([5, 3, 5, 8, 1, 9])
every_loss = pytest.mark.parametrize("name", sorted(losses.LOSSES))
# Past its warm-up, so that its mixtures are there.
OPTIONS = {"mochi": {"warmup": 0, "n_hardest": 4, "n_mixed": 5, "n_mixed_with_query": 3}, "sdcon": {"hold": "neither"}}


def compute(name, estimates, candidates, *, compiled=None, ids=True, **options):
    """Loss, and gradients of estimates, candidates (where trained) and parameters, of two steps."""
    loss = losses.build(name, **OPTIONS.get(name, {}), **options)
    call = loss if compiled is None else torch.compile(loss, backend=compiled)
    estimates = estimates.detach().clone().requires_grad_()
    keywords = {"row_ids": IDS, "col_ids": torch.cat([IDS, 100 + torch.arange(len(candidates) - 6)])} if ids else {}
    value = sum(call(estimates, candidates, **keywords).loss for _ in range(2))
    leaves = [estimates, *([candidates] if candidates.requires_grad else []), *(p for p in loss.parameters() if p.requires_grad)]
    return [value.detach(), *torch.autograd.grad(value, leaves)]


@every_loss
@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_chunks_change_nothing(name, trained, chunk):
    estimates, candidates = make_vectors(6, 0), make_vectors(11, 1).requires_grad_(trained)
    dense = compute(name, estimates, candidates)
    for got, expected in zip(compute(name, estimates, candidates, chunk=chunk), dense, strict=True):
        torch.testing.assert_close(got, expected, atol=1e-9, rtol=0)
    loss = losses.build(name, chunk=chunk)
    torch.testing.assert_close(loss.scores(estimates, candidates), losses.build(name).scores(estimates, candidates), atol=1e-12, rtol=0)


class Largest(TorchDispatchMode):
    """The bytes of the largest tensor that anything inside the block makes; views of existing ones do not count."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        taken = {value.untyped_storage().data_ptr() for value in args if isinstance(value, torch.Tensor)}
        for value in result if isinstance(result, tuple | list) else [result]:
            if isinstance(value, torch.Tensor) and value.untyped_storage().data_ptr() not in taken:
                self.bytes = max(self.bytes, value.numel() * value.element_size())
        return result


@pytest.mark.parametrize("name", ["clip", "dcl", "clip_symmetric", "siglip"])
def test_chunks_need_a_tenth_of_the_memory(name):
    """8 estimates against 512 candidates of 16 x 64 in bfloat16: no float32 copy of them is made, forward or backward."""
    estimates = make_vectors(8, 0, shape=(16, 64), dtype=torch.float32).requires_grad_()
    candidates = make_vectors(512, 1, shape=(16, 64), dtype=torch.bfloat16)
    largest = {}
    for chunk in (None, 32):
        with Largest() as mode:
            losses.build(name, chunk=chunk)(estimates, candidates).loss.backward()
        largest[chunk] = mode.bytes
    assert largest[None] >= 512 * 16 * 64 * 4
    assert largest[32] <= largest[None] / 10


def test_candidates_may_be_memory_mapped(tmp_path):
    stored = np.memmap(tmp_path / "candidates.f16", dtype=np.float16, mode="w+", shape=(40, 3, 5))
    stored[:] = make_vectors(40, 1).numpy()
    mapped = torch.from_numpy(stored)
    estimates = make_vectors(6, 0, dtype=torch.float32)
    for got, expected in zip(
        compute("clip", estimates, mapped, chunk=7), compute("clip", estimates, torch.from_numpy(np.array(stored))), strict=True
    ):
        torch.testing.assert_close(got, expected)


@every_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_has_float32_logits_and_stays_finite(name, dtype):
    estimates, candidates = make_vectors(6, 0, dtype=dtype), make_vectors(6, 1, dtype=dtype)
    loss = losses.build(name)
    assert loss.scores(estimates, candidates).dtype == torch.float32
    plain, *_ = compute(name, estimates, candidates)
    assert plain.dtype == torch.float32
    torch.testing.assert_close(plain, compute(name, estimates.float(), candidates.float())[0])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(compute(name, estimates, candidates)[0], plain)
    # Scores of hundreds, perfect and all wrong; cosines of exactly 1.
    for extreme in (300 * estimates, 300 * candidates, -300 * candidates, torch.ones_like(candidates)):
        for result in compute(name, extreme, candidates):
            assert result.isfinite().all()
    assert compute(name, 0 * candidates, candidates)[0].isfinite()


@pytest.mark.parametrize("name", sorted(set(losses.LOSSES) - {"mse"}))
def test_small_temperatures_stay_finite(name):
    """Where the public code's log(1e-45) in place of -inf fails."""
    if name in {"clip_symmetric", "siglip"}:
        options = {"temperature": 0.001, "learnable": False}
    elif name == "isogclr":
        options = {"temperature": 0.005}
    else:
        options = {"temperature": 0.001}
    estimates = make_vectors(6, 0, dtype=torch.float32)
    for result in compute(name, estimates, estimates.roll(1, 0), **options):
        assert result.isfinite().all()


# torch's own, from inside dynamo: it looks at .grad of the tensor that a graph break hands over.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@every_loss
def test_compiled_is_the_same(name):
    torch._dynamo.reset()
    estimates, candidates = make_vectors(6, 0), make_vectors(6, 1)
    for got, expected in zip(compute(name, estimates, candidates, compiled="aot_eager"), compute(name, estimates, candidates), strict=True):
        torch.testing.assert_close(got, expected, atol=1e-9, rtol=0)
