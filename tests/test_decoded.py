"""Words, repeats: equal to plain loops, and right where the truth is planted."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import integrate
from scipy.stats import norm

from brainspeech import decoded
from brainspeech.evaluate import EvaluateConfig
from brainspeech.prediction import TestSet
from brainspeech.records import Segment, Span

CONFIG = EvaluateConfig(n_bootstrap=200, n_permutations=99)
TRAINED = ("the", "cat", "saw", "a", "dog", "and")
STORY = [*TRAINED, "the", "dog", "saw", "the", "big", "cat", "near", "the", "old", "red", "house", "by", "night"]


def window(subject, i, word, *, recording="", split="test", block="", text=""):
    """The i-th window of a story, 3 s after the one before."""
    return Segment(
        f"d/{subject}{recording}", f"d/{subject}", 3.0 * i, 3.0, f"s{i}", block or f"b{i // 3}", text or word, word, split,
        (Span("story", 0.0, 999.0, -3.0 * i),),
    )  # fmt: skip


def story(*, subjects="ab", train="the cat Saw. a dog and", words=STORY):
    """A fold with the training windows of each subject and one test window per word."""
    out = []
    for subject in subjects:
        out.append(window(subject, 900, "", split="train", text=train))
        out += [window(subject, i, word) for i, word in enumerate(words)]
    return out


def scored(fold, *, gain=1.0, seed=0, scale=1.0):
    test = TestSet.from_segments([s for s in fold if s.split == "test"])
    scores = np.random.default_rng(seed).normal(size=(len(test.truth), len(test.candidates))).astype(np.float32)
    scores[np.arange(len(test.truth)), test.truth] += gain
    return scores * np.float32(scale), test


def test_words_are_summed_as_in_a_double_loop():
    scores = np.random.default_rng(0).normal(size=(7, 9))
    word_of = np.array([2, 0, 1, 0, 2, 3, 0, 1, 1])
    summed, nearest = decoded.by_word(scores, word_of)
    for w in range(7):
        total = sum(np.exp(s) for s in scores[w])
        for word in range(4):
            own = [scores[w, c] for c in range(9) if word_of[c] == word]
            assert np.exp(summed[w, word]) / total == pytest.approx(sum(np.exp(s) for s in own) / total)
            assert nearest[w, word] == max(own)


def test_large_scores_do_not_underflow_and_bad_ones_are_misses():
    summed, _ = decoded.by_word(np.array([[5000.0, -5000.0, -5001.0], [-np.inf, -np.inf, 0.0], [np.nan, 1.0, 0.0]]), np.array([0, 1, 1]))
    assert summed[0] == pytest.approx([5000.0, -5000 + np.log1p(np.exp(-1))])
    assert summed[1].tolist() == [-np.inf, 0.0]
    assert np.isnan(summed[2, 0])
    assert summed[2, 1] == pytest.approx(np.log(np.e + 1))


def test_the_softmax_spreads_over_as_many_as_are_equal():
    scores = np.array([[0.0, 0, 0, 0], [0, 0, -900, -900], [90, 0, 0, 0]])
    np.testing.assert_allclose(decoded.effective_number(scores), [4, 2, 1])


def test_word_accuracies_are_those_of_a_plain_loop():
    fold = story()
    scores, test = scored(fold)
    found = decoded.words([scores], test, decoded.seen_in_training([fold]), config=CONFIG)
    names = [c.word for c in test.candidates]
    vocabulary = sorted(set(names))
    assert (found["windows"], found["candidates"], found["vocabulary"]) == (38, 19, len(vocabulary))
    hits = {"all": [], "seen": [], "unseen": []}
    for w, row in enumerate(np.exp(scores)):
        own = names[test.truth[w]]
        mass = {word: sum(p for p, name in zip(row, names, strict=True) if name == word) for word in vocabulary}
        rank = sum(mass[word] >= mass[own] for word in vocabulary if word != own)
        hits["all"].append(rank < 5)
        hits["seen" if own in TRAINED else "unseen"].append(rank < 5)
    for name, of in hits.items():
        group = found["groups"][name]
        assert group["windows"] == len(of) > 0
        assert group["sum"]["top5"]["value"] == pytest.approx(np.mean(of))
        assert group["sum"]["top5"]["low"] <= np.mean(of) <= group["sum"]["top5"]["high"]
    assert found["groups"]["unseen"]["words"] == len({w for w in STORY if w not in TRAINED})
    assert found["chance"]["top5"] == 5 / len(vocabulary)
    # `the` is 4 of 19 words; cat, saw and dog are 2 each
    assert found["groups"]["all"]["frequent"] == pytest.approx({"top1": 4 / 19, "top5": 11 / 19, "top10": 16 / 19})


def test_a_flat_softmax_finds_what_the_frequent_word_finds():
    """Where scores say next to nothing, a sum of probabilities counts candidates; the nearest candidate does not."""
    fold = story()
    scores, test = scored(fold, gain=9.0, scale=1e-4)
    found = decoded.words([scores], test, decoded.seen_in_training([fold]), config=CONFIG)
    group = found["groups"]["all"]
    assert found["spread"] > 0.99
    assert group["sum"]["top1"]["value"] == pytest.approx(group["frequent"]["top1"])
    assert group["nearest"]["top1"]["value"] == 1
    steep = decoded.words([scores * np.float32(1e4)], test, decoded.seen_in_training([fold]), config=CONFIG)
    assert steep["groups"]["all"]["sum"]["top1"]["value"] == 1
    assert steep["groups"]["all"]["nearest"] == group["nearest"]


def test_windows_without_an_anchor_word_are_counted_and_left_out():
    fold = story(words=["--", *STORY, ""])
    scores, test = scored(fold)
    seen = decoded.seen_in_training([fold])
    found = decoded.words([scores], test, seen, config=CONFIG)
    assert found["left_out"] == {"windows": 4, "candidates": 2}
    inner, inner_test = scores[np.isin(test.truth, range(1, 20))][:, 1:20], scored(story())[1]
    without = decoded.words([inner], inner_test, decoded.seen_in_training([story()]), config=CONFIG)
    for k in ("top1", "top5", "top10"):
        assert without["groups"]["all"]["sum"][k]["value"] == found["groups"]["all"]["sum"][k]["value"]


def test_a_grid_has_no_words_and_one_word_is_no_choice():
    fold = story(words=[""] * 6)
    scores, test = scored(fold)
    assert "test_anchors is 'grid'" in decoded.words([scores], test, decoded.seen_in_training([fold]), config=CONFIG)["why"]
    fold = story(words=["the"] * 6)
    scores, test = scored(fold)
    assert "the same one, 'the'" in decoded.words([scores], test, decoded.seen_in_training([fold]), config=CONFIG)["why"]


def test_seeds_are_averaged():
    fold = story()
    (first, test), (second, _) = scored(fold), scored(fold, seed=1)
    seen = decoded.seen_in_training([fold])
    one, two, both = (decoded.words(s, test, seen, config=CONFIG)["groups"]["all"]["sum"] for s in ([first], [second], [first, second]))
    assert both["top5"]["value"] == pytest.approx((one["top5"]["value"] + two["top5"]["value"]) / 2)
    assert one["top5"] != two["top5"]


def test_what_training_had_is_asked_of_the_own_fold():
    folds = [story(subjects="a", train="the"), story(subjects="b", train="cat")]
    seen = decoded.seen_in_training(folds)
    assert seen.tolist() == [word == "the" for word in STORY] + [word == "cat" for word in STORY]


@pytest.mark.parametrize(("onset", "seen"), [(2702.5, True), (2702.985, False)])
def test_a_word_that_a_training_window_cuts_was_heard_in_training(onset, seen):
    """Its middle is outside, so the window's own text lacks it; what was heard of it was trained on all the same."""
    fold = story(subjects="a")
    events = pd.DataFrame({"kind": ["word"], "onset": [onset], "duration": [1.2], "text": ["House"]})  # the window: 2700 s to 2703 s
    found = dict(zip(STORY, decoded.seen_in_training([fold], {"d/a": events}), strict=True))
    assert found["house"] == seen
    assert found["cat"]
    assert not found["night"]


# ------------------------------------------------------------------------------------------------------------------------------- repeats


def presented(n_subjects, n_stimuli, sessions):
    """Every subject hears every segment once in each session."""
    heard = [(s, r, i) for s in range(n_subjects) for r in range(sessions) for i in range(n_stimuli)]
    return [window(f"s{s}", i, "w", recording=f"-{r}", block=f"b{i // 5}") for s, r, i in heard]


def top1(gain, n):
    """Probability that a score drawn from N(gain, 1) is above n - 1 from N(0, 1)."""
    return integrate.quad(lambda x: norm.pdf(x - gain) * norm.cdf(x) ** (n - 1), -9, 20)[0]


def test_averaging_repeats_raises_accuracy_as_independent_noise_does():
    windows = presented(12, 50, 3)
    scores, test = scored(windows, gain=1.5)
    found = decoded.repeats([scores], test, windows, config=CONFIG)
    assert (found["presentations"], found["pairs"], found["repeated"]) == (3, 600, 600)
    for r in (1, 2, 3):
        expected = top1(1.5 * r**0.5, 50)
        assert found["averaged"][r - 1]["top1"]["value"] == pytest.approx(expected, abs=3.5 * (expected * (1 - expected) / 600) ** 0.5)
        assert found["alone"][r - 1]["top1"] == pytest.approx(top1(1.5, 50), abs=0.06)
    gain = found["gain"]["top1"]
    assert gain["value"] == pytest.approx(found["averaged"][2]["top1"]["value"] - found["averaged"][0]["top1"]["value"])
    assert 0 < gain["low"] < gain["value"] < gain["high"]


def test_averages_are_those_of_a_plain_loop():
    windows = presented(2, 6, 2)
    scores, test = scored(windows)
    found = decoded.repeats([scores], test, windows, config=CONFIG)
    hits = []
    for s in range(2):
        for i in range(6):
            mean = (scores[s * 12 + i] + scores[s * 12 + 6 + i]) / 2
            hits.append(sum(mean >= mean[i]) - 1 < 1)
    assert found["averaged"][1]["top1"]["value"] == pytest.approx(np.mean(hits))


def test_only_segments_with_all_presentations_count():
    windows = [s for s in presented(2, 6, 3) if not (s.recording.endswith("-2") and s.stimulus_id in ("s0", "s1"))]
    windows = [s for s in windows if not (s.recording == "d/s0-1" and s.stimulus_id == "s0")]
    scores, test = scored(windows)
    found = decoded.repeats([scores], test, windows, config=CONFIG)
    # 12 pairs: 8 were presented three times, 3 twice, 1 once
    assert (found["presentations"], found["pairs"], found["repeated"]) == (3, 8, 11)
    few = [s for s in windows if not (s.recording.endswith("-2") and s.stimulus_id in ("s2", "s3"))]
    scores, test = scored(few)
    found = decoded.repeats([scores], test, few, config=CONFIG)
    # 4 three times, 7 twice: fewer than half have three
    assert (found["presentations"], found["pairs"]) == (2, 11)


def test_overlapping_windows_and_other_places_are_no_repeats():
    once = [window("a", i, "w") for i in range(4)]
    near = replace(once[1], onset=once[1].onset + 0.2, spans=(Span("story", 0.0, 999.0, -3.0),))
    elsewhere = replace(once[2], recording="d/a-1", spans=(Span("story", 0.0, 999.0, -90.0),))
    windows = [*once, near, elsewhere]
    scores, test = scored(windows)
    assert decoded.repeats([scores], test, windows, config=CONFIG) == {}
    again = [*windows, replace(once[3], onset=once[3].onset + 60), replace(once[0], recording="d/a-1", onset=0.01)]
    scores, test = scored(again)
    groups = [own for own in decoded.presentations(test, again) if len(own) > 1]
    assert sorted(groups) == [[0, 7], [3, 6]]


# ------------------------------------------------------------------------------------------------------------------------------ describe


def test_a_description_is_plain_values():
    fold = story()
    scores, test = scored(fold)
    found = decoded.describe([scores], test, [fold], config=CONFIG, sets=("phonemes", "bag_of_words"))
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert set(found) == {"words", "repeats", "regression"}
    assert found["repeats"] == {}  # which the report says in words
    assert set(found["regression"]["sets"]) == {"phonemes", "bag_of_words"}
    assert decoded.describe([scores], test, [fold], config=CONFIG)["regression"] == {}


def test_a_constant_row_is_described_too():
    fold = story()
    scores, test = scored(fold)
    found = decoded.describe([scores[0]], test, [fold], config=CONFIG)["words"]["groups"]["all"]
    assert found["sum"]["top1"]["value"] <= found["frequent"]["top1"]


def test_other_segments_or_unknown_sets_are_errors():
    fold = story()
    scores, test = scored(fold)
    with pytest.raises(ValueError, match="hold 19 test windows, which are not the 38"):
        decoded.describe([scores], test, [fold[:20]], config=CONFIG)
    with pytest.raises(ValueError, match=r"shape \(38, 19\), or \(19,\) where"):
        decoded.describe([scores[:, :3]], test, [fold], config=CONFIG)
    with pytest.raises(ValueError, match="got 'letters'"):
        decoded.describe([scores], test, [fold], config=CONFIG, sets=("letters",))
    with pytest.raises(ValueError, match="got 'dutch'"):
        decoded.describe([scores], test, [fold], config=CONFIG, language="dutch")
