"""Batches by rule: nothing doubled, nothing lost without a reason, the same for the same seed and epoch."""

import numpy as np
import pytest

from brainspeech import sampling
from brainspeech.sampling import Order, group_batches, group_parts, segment_batches, segment_parts, share


def test_batches_of_segments():
    orders = [np.concatenate(segment_batches(30, 8, seed=3, epoch=e)) for e in range(2)]
    for order in orders:
        assert len(order) == len(set(order.tolist())) == 24
    assert not np.array_equal(orders[0], orders[1])
    assert [len(b) for b in segment_batches(5, 8, seed=3, epoch=0)] == [5]
    for n, size in [(2, 8), (3, 2), (9, 8), (30, 8), (16, 8)]:
        parts = segment_parts(n, size, seed=3)
        assert sorted(np.concatenate(parts).tolist()) == list(range(n))
        assert min(map(len, parts)) >= 2
    assert all(np.array_equal(a, b) for a, b in zip(segment_parts(30, 8, seed=3), segment_parts(30, 8, seed=3), strict=True))


def test_the_order_of_segments_is_that_of_earlier_versions():
    """Numbers of a run by an earlier version: a checkpoint of it goes on in the same order."""
    assert [b.tolist() for b in segment_batches(7, 3, seed=2036, epoch=1)] == [[6, 4, 0], [1, 5, 2]]
    assert [b.tolist() for b in segment_parts(5, 3, seed=2036)] == [[1, 4, 2], [0, 3]]


def ids_of(sizes, seed=0):
    """Groups of these sizes, their members strewn."""
    return np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)) * 1000 + 7, sizes))


def test_batches_of_whole_groups():
    ids = ids_of([4, 1, 3, 4, 2, 4, 4, 3, 1, 4, 4, 4])
    batches = group_batches(ids, 10, seed=3, epoch=0)
    rows = np.concatenate(batches)
    assert len(rows) == len(set(rows.tolist())) >= len(ids) - 10
    for batch in batches:
        assert 10 - 3 <= len(batch) <= 10
        for group in set(ids[batch].tolist()):
            assert set(np.flatnonzero(ids == group)) <= set(batch.tolist())
        assert len(set(ids[batch].tolist())) > 1
    again, other = group_batches(ids, 10, seed=3, epoch=0), group_batches(ids, 10, seed=3, epoch=1)
    assert [b.tolist() for b in again] == [b.tolist() for b in batches]
    assert [b.tolist() for b in other] != [b.tolist() for b in batches]


def test_groups_of_equal_size_leave_out_less_than_a_batch_and_every_epoch_another_rest():
    ids = ids_of([2] * 25)
    left = []
    for epoch in range(4):
        rows = np.concatenate(group_batches(ids, 8, seed=0, epoch=epoch))
        assert len(rows) == 48
        left.append(set(range(50)) - set(rows.tolist()))
    assert len(set.union(*left)) > 2


def test_large_groups_are_cut_and_their_parts_do_not_meet():
    ids = ids_of([9] * 12)
    batches = group_batches(ids, 12, seed=1, epoch=0, views=4)
    rows = np.concatenate(batches)
    assert len(rows) == len(set(rows.tolist())) > 12 * 9 - 12
    for batch in batches:
        counts = np.unique(ids[batch], return_counts=True)[1]
        assert set(counts.tolist()) == {3}  # 9 = 3 + 3 + 3, the nearly equal parts of at most 4
    assert {len(b) for b in batches} == {12}


def test_few_groups_with_many_views_end_when_no_second_group_is_left():
    ids = ids_of([20, 6, 6])
    batches = group_batches(ids, 16, seed=0, epoch=0, views=2)
    assert all(len(set(ids[b].tolist())) == 3 for b in batches)
    assert len(batches) == 3


def test_a_set_smaller_than_a_batch_is_one_batch():
    (batch,) = group_batches(ids_of([2, 3]), 99, seed=0, epoch=0)
    assert sorted(batch.tolist()) == list(range(5))


@pytest.mark.parametrize("views", [None, 2])
@pytest.mark.parametrize(("sizes", "size"), [([3] * 10, 8), ([1, 5, 2], 4), ([7], 3), ([2, 2], 2), ([1] * 9, 2), ([30, 1, 1], 8)])
def test_parts_of_validation_hold_every_segment_once(sizes, size, views):
    ids = ids_of(sizes)
    parts = group_parts(ids, size, seed=3, views=views)
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(ids)))
    if len(parts) > 1:
        assert all(len(set(ids[part].tolist())) > 1 for part in parts)
    if views is None:
        for part in parts:
            assert all(set(np.flatnonzero(ids == g)) <= set(part.tolist()) for g in set(ids[part].tolist()))
    assert [p.tolist() for p in parts] == [p.tolist() for p in group_parts(ids, size, seed=3, views=views)]


def test_groups_that_leave_no_room_for_another_are_refused():
    with pytest.raises(ValueError, match=r"the two largest have 6 and 5 segments, the batch holds 10\. Set views to at most 5"):
        group_batches(ids_of([6, 5, 1]), 10, seed=0, epoch=0)
    assert group_batches(ids_of([6, 5, 1]), 10, seed=0, epoch=0, views=5)
    with pytest.raises(ValueError, match="at least two stimuli, got one"):
        group_batches(ids_of([6]), 10, seed=0, epoch=0)


def flat(steps):
    return np.concatenate([rows for step in steps for rows in step])


def test_batches_are_cut_into_parts_for_processes_and_stay_the_same_together():
    order, ids = Order("segments", 15, seed=1), np.arange(50)
    steps = share(order, ids, 3, n_processes=2, apart=False)
    assert [[len(rows) for rows in step] for step in steps] == [[8, 7]] * 3
    assert [np.concatenate(step).tolist() for step in steps] == [b.tolist() for b in segment_batches(50, 15, seed=1, epoch=3)]
    assert sorted(flat(share(order, ids, None, n_processes=3, apart=True)).tolist()) == list(range(50))


def test_apart_groups_stay_in_one_process():
    order, ids = Order("grouped", 24, seed=0), ids_of([3] * 20)
    steps = share(order, ids, 0, n_processes=2, apart=True)
    assert all(len(step) == 2 for step in steps)
    for step in steps:
        assert not set(ids[step[0]]) & set(ids[step[1]])
        assert [len(rows) for rows in step] == [12, 12]
    valid = share(order, ids, None, n_processes=4, apart=True)
    assert sorted(flat(valid).tolist()) == list(range(60))
    together = share(Order("grouped", 21, seed=0), ids, 0, n_processes=2, apart=False)
    assert any(set(ids[step[0]]) & set(ids[step[1]]) for step in together)


@pytest.mark.parametrize(
    ("sampler", "n", "apart", "said"),
    [
        ("segments", 3, False, "needs at least 1 segments of a batch of 8, got 0"),
        ("segments", 7, True, "needs at least 2 segments of a batch of 8, got 1"),
        ("grouped", 4, True, "need 4 batches of 2 segments"),
    ],
)
def test_too_little_for_the_processes(sampler, n, apart, said):
    with pytest.raises(ValueError, match=said):
        share(Order(sampler, 8, seed=0), np.arange(n), 0, n_processes=4, apart=apart)


@pytest.mark.parametrize("n_processes", [2, 3])
def test_every_process_that_compares_within_itself_has_a_negative_in_validation(n_processes):
    """Else an awkward number of validation segments would end a fit after its first epoch."""
    size = 2 * n_processes
    for n in range(size, 40):
        steps = share(Order("segments", size, seed=3), np.arange(n), None, n_processes=n_processes, apart=True)
        assert min(len(rows) for step in steps for rows in step) >= 2
        assert sorted(row for step in steps for rows in step for row in rows.tolist()) == list(range(n))


@pytest.mark.parametrize(
    ("sizes", "batch_size", "apart", "said"),
    [
        ([1, 1, 5, 1], 6, False, "Each of 3 processes needs at least 1 segments"),
        ([3, 2, 2, 2, 2, 2, 2, 1, 1], 18, True, "3 processes that compare within themselves need 3 batches"),
    ],
)
def test_what_can_be_shared_out_in_the_first_epoch_can_be_in_all(sizes, batch_size, apart, said):
    """Else a fit would be refused hours after it began, by the luck of a later epoch's order."""
    order, ids = Order("grouped", batch_size, seed=2), ids_of(sizes)
    first = share(order, ids, 0, n_processes=3, apart=apart)
    refused = []
    for epoch in range(1, 40):
        steps = share(order, ids, epoch, n_processes=3, apart=apart)
        assert all(len(rows) >= 1 for step in steps for rows in step)
        try:
            sampling._share(order, ids, epoch, 3, apart)
        except ValueError as error:
            refused.append(str(error))
            assert flat(steps).tolist() == flat(first).tolist()
    assert 0 < len(refused) < 39
    assert all(text.startswith(said) for text in refused)
