"""What each of the two processes of test_loss_gather does; imported by name in a spawned process."""

from __future__ import annotations

from unittest import mock

import torch
import torch.distributed as dist

from brainspeech import host, losses

N_FEATURES = 4


def start(rank, file):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)


def stop():
    dist.destroy_process_group()


def steps(name, options, batches, *, gather, trained, blind=False):
    """Run a linear encoder of M/EEG, and one of speech that may be trained, through some batches.

    Parameters
    ----------
    batches : list of dict
        For each step: estimates, candidates, row_ids, col_ids (None: no ids).
    blind : bool
        Look at no number of a tensor, as on a GPU.

    Returns
    -------
    dict
        losses (one per step), logs of the last, gradient of encoders and parameters averaged over processes, the loss's state.
    """
    generator = torch.Generator().manual_seed(0)
    loss = losses.build(name, gather=gather, **options).double()
    encoders = [torch.randn(N_FEATURES, N_FEATURES, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(2)]
    encoders[1].requires_grad_(trained)
    parameters = [encoders[0], *([encoders[1]] if trained else []), *(p for p in loss.parameters() if p.requires_grad)]
    total, values, logs = 0.0, [], {}
    for batch in batches:
        estimates, candidates = (
            torch.einsum("fg,bgt->bft", encoder, batch[what]) for encoder, what in zip(encoders, ("estimates", "candidates"), strict=True)
        )
        with mock.patch("brainspeech.host.at_hand", (lambda tensor: False) if blind else host.at_hand):
            output = loss(estimates, candidates, row_ids=batch["row_ids"], col_ids=batch["col_ids"])
        total, logs = total + output.loss, output.logs
        values.append(output.loss.item())
    gradients = torch.autograd.grad(total, parameters)
    if gather:
        for gradient in gradients:
            dist.all_reduce(gradient)
            gradient /= dist.get_world_size()
    return {
        "losses": values,
        "logs": {key: value.item() for key, value in logs.items()},
        "gradients": [gradient.numpy() for gradient in gradients],
        "state": {key: value.numpy() for key, value in loss.state_dict().items()},
    }


def gathered_dtypes():
    """Gather each precision, in uneven parts, one of them empty."""
    from brainspeech.losses import gather

    rank = dist.get_rank()
    results = []
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64):
        for lengths in ([2, 3], [0, 1]):
            local = (torch.arange(2 * lengths[rank]) + 10 * rank).view(-1, 2).to(dtype)
            sizes = gather.lengths(len(local))[0]
            whole = gather.values(local, sizes)
            results.append((sizes, whole.dtype == dtype, whole.double().tolist()))
    return results


def refusals():
    """Say what a call with a mask, and one without ids, across processes answers."""
    estimates = torch.randn(2, 3, 2, generator=torch.Generator().manual_seed(dist.get_rank()))
    said = []
    for call in (
        lambda: losses.build("clip", gather=True)(estimates, estimates, ignore=torch.zeros(2, 4, dtype=torch.bool)),
        lambda: losses.build("mv_infonce", gather=True)(estimates[None], estimates),
    ):
        try:
            call()
        except ValueError as error:
            said.append(str(error))
    return said
