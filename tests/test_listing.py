"""Names in a sentence are listed up to a number, and the rest is counted."""

import pytest

from brainspeech.listing import merged, some


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ([], ""),
        (["a"], "a"),
        (["a", "b"], "a, b"),
        (["a", "b", "c"], "a, b and 1 more"),
        ({"a": 1, "b": 2, "c": 3, "d": 4}, "a, b and 2 more"),
    ],
)
def test_the_first_are_named_and_the_others_counted(names, said):
    assert some(names, 2) == said


def test_notes_of_several_recordings_become_one_that_counts_them():
    known = ["Simulated.", "Run 1: 3 words have no place.", "Run 2: 4 words have no place.", "d/sub-1: 3 channels have no place."]
    new = [
        "d/sub-2/run-1: 5 channels have no place.",
        *(f"d/sub-{n}: the header lacks a date." for n in range(2, 10)),
        "d/sub-3: 5 channels have no place.",
        "d/sub-3: 6 channels have no place.",
        "d/sub-4: 1 s is cut.",
        "d/sub-4: 2 s is cut.",
        "Simulated.",
    ]
    assert merged([*known, *new]) == [
        *known[:3],
        "d/sub-3: 6 channels have no place. The same with other numbers or names in 2 more (4 notes in all): d/sub-1, d/sub-2/run-1.",
        "d/sub-2: the header lacks a date. The same in 7 more: d/sub-3, d/sub-4, d/sub-5, d/sub-6, d/sub-7 and 2 more.",
        "d/sub-4: 1 s is cut.",
        "d/sub-4: 2 s is cut.",
    ]


def test_the_largest_number_speaks_for_many():
    notes = [f"d/sub-{n}: {lost} of 300 words are dropped." for n, lost in ((1, 1), (2, 299), (3, 30))]
    assert merged(notes) == ["d/sub-2: 299 of 300 words are dropped. The same with other numbers or names in 2 more: d/sub-1, d/sub-3."]
