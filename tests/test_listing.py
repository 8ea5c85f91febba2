"""Names in a sentence are listed up to a number, and the rest is counted."""

import pytest

from brainspeech.listing import some


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
