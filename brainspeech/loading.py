"""Where the data of a fit are kept, and batches that are ready when they are wanted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch

from brainspeech.batches import Batch, SegmentDataset

RESIDENT = ("auto", "full", "half", "never")
# What ``choose_place`` says, in words.
PLACES = {
    "full": "are kept on the device",
    "half": "are kept on the device, with 16 bits per number",
    "tracks": "do not fit: tracks are kept on the device, signals are sent ahead from pinned memory",
    "none": "stay in memory: batches are sent ahead from pinned memory",
}


def side_stream(device: torch.device) -> Any:
    """Give the stream of a GPU on which the batches of a fit are made; None elsewhere.

    One for a whole fit: freed memory is only given to the stream that had it, so that each further stream would hold batches of its own.
    """
    return torch.cuda.Stream(device) if device.type == "cuda" else None


def stream(
    dataset: SegmentDataset, batches: Sequence[np.ndarray], device: torch.device, side: Any = None
) -> Iterator[tuple[np.ndarray, Batch]]:
    """Yield batches on the device. Beside a GPU, a thread makes the next one, on a stream of its own, while the present one is computed."""
    if device.type == "cpu" or not batches:
        for rows in batches:
            yield rows, dataset.batch(rows)
        return
    side = side_stream(device) if side is None else side
    if side is not None:
        side.wait_stream(torch.cuda.current_stream(device))  # on which the data came to the device

    def make(rows: np.ndarray) -> tuple[Batch, Any]:
        with nullcontext() if side is None else torch.cuda.stream(side):
            batch = dataset.batch(rows).to(device)
            return batch, None if side is None else side.record_event()

    with ThreadPoolExecutor(1) as pool:
        ahead = pool.submit(make, batches[0])
        for i, rows in enumerate(batches):
            batch, ready = ahead.result()
            if i + 1 < len(batches):
                ahead = pool.submit(make, batches[i + 1])
            if ready is not None:
                here = torch.cuda.current_stream(device)
                here.wait_event(ready)
                for name in batch.__dataclass_fields__:  # their memory is not given to the other stream before this one is done with it
                    getattr(batch, name).record_stream(here)
            yield rows, batch


def place(parts: Sequence[SegmentDataset], device: torch.device, resident: str, *, reduced: bool) -> tuple[list[SegmentDataset], str]:
    """Put the data where batches are made, and say where that is."""
    apart = [part for i, part in enumerate(parts) if not any(part.shares(other) for other in parts[:i])]
    signals, tracks = (sum(sizes) for sizes in zip(*(part.n_bytes for part in apart), strict=True))
    free = free_bytes(device)
    where = choose_place(signals, tracks, free, resident, reduced=reduced)
    needed = f"signals of {signals / 1e9:.2f} GB and tracks of {tracks / 1e9:.2f} GB"
    said = f"{needed} {PLACES[where]}" + ("" if free is None else f" ({free / 1e9:.1f} GB of its memory were free)")
    if device.type == "cpu" and where in ("tracks", "none"):
        return list(parts), f"{needed}, gathered in memory"
    copies = [part.to(device, signals=where in ("full", "half"), tracks=where != "none", half=where == "half") for part in apart]
    return [next(part.beside(copy) for copy in copies if part.shares(copy)) for part in parts], said


def free_bytes(device: torch.device) -> int | None:
    """Give the bytes that are free on a GPU; None for a CPU."""
    if device.type != "cuda":
        return None
    torch.cuda.empty_cache()  # what an earlier fit of this process had is kept by torch, and is not free to the driver
    return torch.cuda.mem_get_info(device)[0]


def choose_place(signals: int, tracks: int, free: int | None, resident: str, *, reduced: bool) -> str:
    """Choose what a device keeps of the data: "full", "half", "tracks" or "none".

    Parameters
    ----------
    signals, tracks : int
        Bytes in float32.
    free : int or None
        Bytes free on the device, of which the data may take half and the steps need the rest; None for a CPU, which keeps nothing twice.
    resident : str
        ``TrainConfig.resident``.
    reduced : bool
        Whether the encoder computes in bf16.

    Raises
    ------
    RuntimeError
        If what is to be kept is larger than all that is free.
    """
    sizes = {"full": signals + tracks, "half": (signals + tracks) // 2, "tracks": tracks, "none": 0}
    if resident in ("full", "half"):
        if free is not None and sizes[resident] > free:
            raise RuntimeError(
                f"resident={resident!r} needs {sizes[resident] / 1e9:.2f} GB on the device for the data alone, "
                f'{free / 1e9:.2f} GB are free. Set resident="auto".'
            )
        return resident
    if resident == "never" or free is None:
        return "none"
    return next(where for where, size in sizes.items() if size <= free // 2 and (where != "half" or reduced))
