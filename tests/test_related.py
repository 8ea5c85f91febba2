"""What goes along with being decoded well: the word property that was planted, and no other."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from brainspeech import datasets, related
from brainspeech.prediction import TestSet
from brainspeech.records import Segment, Span

VOCABULARY = ["a", "so", "cat", "dog", "five", "river", "house", "morning", "elephant", "mountains", "everything", "wonderful"]


def heard(*, n_blocks=20, per_block=8, subjects="ab", seed=0, words=VOCABULARY):
    """Windows whose anchor words, and the words after them, are drawn at random."""
    rng = np.random.default_rng(seed)
    out = []
    for k in range(n_blocks):
        for i in range(per_block):
            text = " ".join(rng.choice(VOCABULARY, 3))
            word = str(rng.choice(words))
            out += [
                Segment(f"d/{s}", f"d/{s}", 100.0 * k + i, 3.0, f"{k}-{i}", f"b{k}", f"{word} {text}", word, "test",
                        (Span("story", 100.0 * k, 100.0 * k + 60, -1.0 * i),))
                for s in subjects
            ]  # fmt: skip
    return TestSet.from_segments(out)


def scored(test, gain, seed=0):
    scores = np.random.default_rng(seed).normal(size=(len(test.truth), len(test.candidates))).astype(np.float32)
    scores[np.arange(len(test.truth)), test.truth] += gain
    return scores


def test_the_planted_property_is_found_and_the_others_are_not():
    test = heard()
    long = np.array([len(test.candidates[j].word) > 4 for j in test.truth])
    found = related.relations([scored(test, np.where(long, 2.5, 0.5))], test, ("phonemes", "bag_of_words"), n_permutations=199)
    assert (found["stimuli"], found["left_out"], found["blocks"], found["subjects"], found["permutations"]) == (160, 0, 20, 2, 199)
    sets = found["sets"]
    assert sets["phonemes"]["p_holm"] == pytest.approx(0.01)
    assert sets["phonemes"]["r"] > 0.3 > sets["phonemes"]["high"]
    assert "letters" in sets["phonemes"]["note"]
    nothing = related.relations([scored(test, 1.5)], test, ("phonemes", "bag_of_words"), n_permutations=199)["sets"]
    assert min(entry["p_holm"] for entry in nothing.values()) > 0.05


def test_a_subject_that_is_decoded_better_is_no_property_of_its_stimuli():
    test = heard(n_blocks=6)
    values = np.random.default_rng(0).normal(size=len(test.truth))
    kept = np.array([not (s == "d/b" and j > 20) for s, j in zip(test.subjects, test.truth, strict=True)])
    fewer = TestSet(
        [s for s, k in zip(test.subjects, kept, strict=True) if k],
        [r for r, k in zip(test.recordings, kept, strict=True) if k],
        test.truth[kept], test.candidates, test.first,
    )  # fmt: skip
    values = values[kept]
    other = values + 7.0 * (np.array(fewer.subjects) == "d/b")
    np.testing.assert_allclose(related.by_stimulus(other, fewer), related.by_stimulus(values, fewer))
    assert related.by_stimulus(values, fewer).shape == (48,)


def test_the_log_odds_are_those_of_the_rank():
    test = heard(n_blocks=1, per_block=5, subjects="a")
    scores = np.array([[9, 1, 2, 3, 4]] * 5, np.float32)  # ranks 0, 4, 3, 2, 1
    np.testing.assert_allclose(related.log_odds_of_rank([scores, scores], test), np.log([4.5 / 0.5, 0.5 / 4.5, 1.5 / 3.5, 1, 3.5 / 1.5]))
    np.testing.assert_allclose(related.log_odds_of_rank([scores * 100], test), related.log_odds_of_rank([scores], test))


def test_a_missing_library_says_so_and_the_other_sets_are_made(monkeypatch):
    monkeypatch.setitem(sys.modules, "spacy", None)
    test = heard(n_blocks=6)
    found = related.relations([scored(test, 1.0)], test, ("word_embedding", "phonemes", "phrase_embedding"), n_permutations=19)["sets"]
    assert "pip install" in found["word_embedding"]["why"]
    assert "pip install" in found["phrase_embedding"]["why"]
    assert 0 < found["phonemes"]["p"] == found["phonemes"]["p_holm"] <= 1


def test_without_anchor_words_there_are_phrases_only():
    test = heard(n_blocks=6, words=[""])
    found = related.relations([scored(test, 1.0)], test, ("phonemes", "bag_of_words"), n_permutations=19)["sets"]
    assert "grid" in found["phonemes"]["why"]
    assert "p" in found["bag_of_words"]


def test_what_says_nothing_is_said():
    test = heard(n_blocks=4)
    assert "4 blocks with words are too few" in related.relations([scored(test, 1.0)], test, ("phonemes",))["why"]
    test = heard(n_blocks=6, words=["same"])
    assert "the same for all 48 stimuli" in related.relations([scored(test, 1.0)], test, ("phonemes",))["sets"]["phonemes"]["why"]


def test_words_without_phonemes_are_counted_by_their_letters():
    test = heard(n_blocks=6)
    known = [("AH", "T")] * 47 + [None]
    found = related.relations([scored(test, 1.0)], test, ("phonemes",), phonemes=known, n_permutations=19)["sets"]["phonemes"]
    assert "letters" in found["note"]
    assert "1 words have no phonemes" in found["note"]


def test_phonemes_are_those_of_the_anchor_word():
    simulated = datasets.load("simulated", None, n_subjects=1, minutes=1.0)
    [recording] = simulated.recordings()
    table = simulated.read_events(recording)
    words, phonemes = (table[table["kind"] == kind] for kind in ("word", "phoneme"))
    anchors = [
        Segment(recording.uid, "s", onset - 0.5 + 0.003, 3.0, str(i), "b", text, text, "test")
        for i, (onset, text) in enumerate(zip(words["onset"], words["text"], strict=True))
    ]
    elsewhere = [
        Segment(recording.uid, "s", 900.0, 3.0, "x", "b", "", "cat", "test"),
        Segment("other", "s", 9.0, 3.0, "y", "b", "", "cat", "test"),
    ]
    found = related.anchor_phonemes([*anchors, *elsewhere], {recording.uid: table}, 0.5)
    assert found[-2:] == [None, None]
    assert sum(len(own) for own in found[:-2]) == len(phonemes)
    for own, onset, duration in zip(found, words["onset"], words["duration"], strict=False):
        middle = phonemes["onset"] + phonemes["duration"] / 2
        assert own == tuple(phonemes["text"][(middle > onset) & (middle < onset + duration)])
    assert related.anchor_phonemes(anchors, {recording.uid: table[table["kind"] != "phoneme"]}, 0.5) == [None] * len(anchors)
