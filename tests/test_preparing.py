"""What comes before the first fit: which subjects, how much of what, before anything is computed."""

import pytest
from tiny_runs import Study, tiny

from brainspeech import preparing
from brainspeech.records import Recording


def test_describe_counts_without_training():
    found = preparing.describe(tiny(), None)
    assert (found["subjects"], found["recordings"]) == (2, 4)
    assert found["hours"] == pytest.approx(10 / 60, rel=0.2)
    assert list(found["splits"]) == ["train", "valid", "test"]
    for counts in found["splits"].values():
        assert {"segments", "windows", "words", "vocabulary"} <= set(counts)
        assert counts["windows"] == 2 * counts["segments"]
    assert 0 < found["vocabulary_overlap"] <= 1


def test_describe_says_that_folds_are_several():
    found = preparing.describe(Study(minutes=7.5).recipe(folds="leave_one_out"), None)
    assert any("are the counts of fold 1 of 3" in warning for warning in found["warnings"])


def test_leave_one_out_needs_three_stimuli():
    with pytest.raises(RuntimeError, match=r"needs at least 3 stimuli .*got 2"):
        preparing.describe(Study().recipe(folds="leave_one_out"), None)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [("all", ["S01", "S02", "S03", "S10"]), ("first:2", ["S01", "S02"]), ("1-2,10", ["S01", "S02", "S10"]), ("3", ["S03"])],
)
def test_subjects_are_selected_by_their_own_numbers(spec, expected):
    recordings = [recording_of(subject) for subject in ("S02", "S01", "S10", "S03")]
    assert sorted(r.subject for r in preparing.select_subjects(recordings, spec)) == expected


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("first:0", "all, first:N or numbers"),
        ("a-b", "all, first:N or numbers"),
        ("", "all, first:N or numbers"),
        ("1,7", r"Subjects \[7\] are not in the dataset; it has S01"),
        ("3-1", "'3-1' runs backwards"),
    ],
)
def test_subjects_that_are_not_there_are_an_error(spec, message):
    with pytest.raises(ValueError, match=message):
        preparing.select_subjects([recording_of("S01"), recording_of("S03")], spec)


def recording_of(subject):
    return Recording("study", subject)
