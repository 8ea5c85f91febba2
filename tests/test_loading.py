"""Where data are kept, and batches made ahead."""

import pytest
import torch
from test_resident import equal, make_data

from brainspeech.loading import choose_place, free_bytes, place, side_stream, stream

GB = 10**9


@pytest.mark.parametrize(
    ("free", "resident", "reduced", "where"),
    [
        (80, "auto", False, "full"),
        (80, "auto", True, "full"),
        (40, "auto", True, "half"),
        (40, "auto", False, "tracks"),  # nobody asked for 16 bits
        (16, "auto", True, "tracks"),
        (2, "auto", True, "none"),
        (80, "never", True, "none"),
        (21, "full", False, "full"),
        (11, "half", False, "half"),
        (None, "auto", False, "none"),
        (None, "full", False, "full"),
    ],
)
def test_what_a_device_keeps(free, resident, reduced, where):
    """Signals of 19 GB, tracks of 2 GB; half of what is free is for the steps, unless the user says otherwise."""
    assert choose_place(19 * GB, 2 * GB, free and free * GB, resident, reduced=reduced) == where


def test_what_is_larger_than_the_device_is_refused():
    with pytest.raises(RuntimeError, match=r"resident='full' needs 21\.00 GB .* 20\.00 GB are free\. Set resident=\"auto\""):
        choose_place(19 * GB, 2 * GB, 20 * GB, "full", reduced=False)


def test_parts_of_one_dataset_are_copied_once_and_others_by_themselves():
    whole, other = make_data(), make_data(seconds=41.0)
    parts = [whole.subset([0, 1, 2]), whole.subset([5, 9]), other.subset([3])]
    placed, said = place(parts, torch.device("cpu"), "full", reduced=False)
    assert placed[0]._windows is placed[1]._windows is not placed[2]._windows
    assert all(equal(got.batch([0]), part.batch([0])) for got, part in zip(placed, parts, strict=True))
    assert "signals of 0.00 GB" in said
    assert "kept on the device" in said
    untouched, said = place(parts, torch.device("cpu"), "auto", reduced=False)
    assert all(got is part for got, part in zip(untouched, parts, strict=True))
    assert "gathered in memory" in said


def test_batches_made_ahead_come_in_order_and_an_early_end_leaves_no_thread():
    """The meta device stands for a GPU."""
    dataset = make_data()
    order = [torch.arange(k, k + 3).numpy() for k in range(0, 12, 3)]
    seen = list(stream(dataset, order, torch.device("meta")))
    assert [rows.tolist() for rows, _ in seen] == [rows.tolist() for rows in order]
    assert all(batch.signal.device.type == "meta" for _, batch in seen)
    ahead = stream(dataset, order, torch.device("meta"))
    next(ahead)
    ahead.close()
    assert list(stream(dataset, [], torch.device("meta"))) == []


def test_what_an_earlier_fit_had_is_free(monkeypatch):
    """torch keeps freed memory, which the driver takes for used: a second fit in a process would be told that its data do not fit."""
    kept = [60 * GB]
    monkeypatch.setattr(torch.cuda, "empty_cache", kept.clear)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (80 * GB - sum(kept), 80 * GB))
    assert free_bytes(torch.device("cuda")) == 80 * GB
    assert free_bytes(torch.device("cpu")) is None
    assert side_stream(torch.device("cpu")) is None
