"""The rows of a report, on planted truth: what was planted is found, and nothing is found once the pairing is broken."""

import dataclasses

import numpy as np
import pytest
from tiny_runs import tiny

from brainspeech import evaluate, features, flow, prediction, rows
from brainspeech.cache import Cache
from brainspeech.evaluate.showing import find_lag_peak
from brainspeech.records import Segment, Span

LAG = 0.2

PLANTED = (
    "dataset.response_lag=0.2",
    "dataset.snr_db=-12",
    "dataset.minutes=7.5",
    "dataset.n_channels=8",
    "preprocess.sfreq=40",
    "segments.sfreq=40",
    "segments.stride=1",
    "batches.lag=0.2",
    "linear_clip.rank=8",
    "linear_clip.lags=(-1,0,1)",
    "train.lr=0.01",
    "train.batch_size=32",
    "train.max_epochs=8",
    "train.max_steps_per_epoch=100",
    "ridge.max_lag=0.3",
    "ridge.lag_step=0.05",
    "evaluate.n_permutations=4000",
    "rows=encoder,linear_clip,ridge,constant",
)


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """A function that fits rows on listeners who follow every sound by exactly 0.2 s; and what they heard."""
    recipe = tiny(*PLANTED)
    folder = tmp_path_factory.mktemp("planted")
    cache = Cache(folder / "cache")
    prepared = flow.prepare(recipe, None, cache, progress=False)
    (fold,) = flow.segment(recipe, prepared)
    tracks, _ = features.compute_tracks(
        prepared.feature,
        features.intervals(fold.segments),
        prepared.dataset.read_stimulus,
        fingerprint=prepared.dataset.stimulus_fingerprint,
        cache=cache,
        progress=False,
    )
    test = prediction.TestSet.from_segments([s for s in fold.segments if s.split == "test"])

    def make(segs=fold.segments, *, recipe=recipe):
        return rows.Fitter(recipe, segs, {"": test.candidates}, prepared.signals, tracks, prepared.feature.fill)

    def score(fitter, names):
        """Give the report of some rows."""
        only = dataclasses.replace(fitter.recipe, rows=("encoder", *names))
        fitter = make(fitter.segs, recipe=only)
        out = tmp_path_factory.mktemp("fits")
        fits = {}
        for name in names:
            if name == "ridge":
                fits |= dict(fitter._ridge(progress=False))
            else:
                fits |= dict(fitter._contrastive(name, fitter.data, out / name, seed=1, progress=False))
        return evaluate.evaluate({name: [fit.scores] for name, fit in fits.items()}, test, config=recipe.evaluate)

    return make, score, fold.segments


def test_a_planted_lag_is_found_where_it_was_planted(planted):
    make, _, _ = planted
    curve = make().lag_curve(progress=False)
    assert list(curve) == list(rows.LAGS)
    assert max(curve, key=curve.__getitem__) == LAG
    # Sharp: 150 ms to either side, the response is over.
    assert curve[LAG] > 1.3 * max(curve[round(LAG - 0.15, 2)], curve[round(LAG + 0.15, 2)])
    assert not find_lag_peak(curve, "top-10")["artefact"]


def test_linear_rows_find_what_was_planted_and_nothing_once_the_pairing_is_shuffled(planted):
    make, score, segs = planted
    names = ("linear_clip", "ridge")
    paired = score(make(), names)
    shuffled_segs, left = rows.shuffled_pairs(segs, seed=3)
    assert left <= 0.05 * len(segs)
    shuffled = score(make(shuffled_segs), names)
    for name in names:
        assert paired.rows[name]["p_above_chance"] < 0.001, name
        assert paired.rows[name]["top10"]["value"] > 3 * paired.chance["top10"], name
        assert shuffled.rows[name]["p_above_chance"] > 0.001, name
        assert shuffled.rows[name]["top10"]["value"] < 2 * shuffled.chance["top10"], name


def test_the_constant_row_is_the_same_for_all_windows(planted):
    make, _, _ = planted
    fitter = make()
    constant = fitter._constant()
    assert constant.scores.shape == (len(fitter.data.pools[""]),)
    assert np.isfinite(constant.scores).all()


def test_the_ridge_is_fitted_once_for_all_seeds(planted, tmp_path, monkeypatch):
    make, _, _ = planted
    recipe = dataclasses.replace(tiny(*PLANTED, "train.max_epochs=1", "train.max_steps_per_epoch=1"), rows=("encoder", "ridge"))
    fitter = make(recipe=recipe)
    calls = []
    fit_ridge = rows.train.fit_ridge
    monkeypatch.setattr(rows.train, "fit_ridge", lambda *args, **options: calls.append(1) or fit_ridge(*args, **options))
    found = [dict(fitter.rows(tmp_path, fold=0, seed=seed, progress=False)) for seed in (1, 2)]
    assert len(calls) == 1
    np.testing.assert_array_equal(found[0]["ridge"].scores, found[1]["ridge"].scores)
    assert not np.array_equal(found[0]["encoder"].scores, found[1]["encoder"].scores)


def test_scorers_add_rows_for_the_encoder_and_its_control(planted, tmp_path):
    make, _, _ = planted
    settings = ("train.max_epochs=1", "train.max_steps_per_epoch=2", "rows=encoder,shuffled,constant", "evaluate.n_layers=2")
    fitter = make(recipe=tiny(*PLANTED, *settings, "evaluate.scorers=augment,layers,other_subject,hubness,context"))
    found = dict(fitter.rows(tmp_path, fold=0, seed=fitter.recipe.seeds[0], progress=False))
    names = ("", "_augment", "_layers", "_other_subject", "_hubness", "_context")
    assert list(found) == [f"{row}{name}" for row in ("encoder", "shuffled") for name in names] + ["constant"]
    for name in names:
        assert found[f"encoder{name}"].scores.shape == found["encoder"].scores.shape
        assert np.isfinite(found[f"encoder{name}"].scores).all()
    said = [w for w in fitter.warnings() if "chosen on the validation split" in w]
    assert [w.split(":")[0] for w in said] == [f"encoder{name}" for name in names[1:]]


def test_a_scorer_that_does_not_fit_is_refused_before_training(planted):
    make, _, _ = planted
    with pytest.raises(ValueError, match="needs to know how many layers"):
        make(recipe=tiny(*PLANTED, "evaluate.scorers=layers"))
    clash = dataclasses.replace(tiny(*PLANTED, "evaluate.scorers=context"), rescore={"context": {}})
    with pytest.raises(ValueError, match="rescore names a row like the scorer context"):
        make(recipe=clash)


# ------------------------------------------------------------------------------------------------------------------- shuffled pairs


def windows(recording, split, n, *, audio="story.wav", start=0.0):
    return [
        Segment(recording, "s", start + i, 3.0, f"{audio}@{start + i}", "block", "", "", split, (Span(audio, 0.0, 500.0, -start - i),))
        for i in range(n)
    ]


def test_shuffled_pairs_shift_what_is_fitted_and_keep_the_test_split():
    segs = [*windows("r", "train", 40), *windows("r", "valid", 12, start=60), *windows("r", "test", 12, start=90)]
    shuffled, left = rows.shuffled_pairs(segs, seed=0)
    assert left == 0
    assert [s for s in shuffled if s.split == "test"] == [s for s in segs if s.split == "test"]
    for split in ("train", "valid"):
        before, after = ([s for s in group if s.split == split] for group in (segs, shuffled))
        assert [s.onset for s in before] == [s.onset for s in after]
        assert sorted(s.stimulus_id for s in before) == sorted(s.stimulus_id for s in after)
        assert min(abs(a.onset + a.spans[0].onset) for a in after) >= 0
        moved = [abs(float(a.stimulus_id.split("@")[1]) - a.onset) for a in after]
        assert min(moved) >= 5


def test_shuffled_pairs_leave_out_and_count_what_is_too_short():
    segs = [*windows("r", "train", 40), *windows("r", "valid", 12, start=60), *windows("q", "valid", 3), *windows("q", "test", 3, start=90)]
    shuffled, left = rows.shuffled_pairs(segs, seed=0)
    assert left == 3
    assert not [s for s in shuffled if (s.recording, s.split) == ("q", "valid")]
    assert len([s for s in shuffled if s.split == "test"]) == 3


def test_shuffled_pairs_fail_where_a_split_is_lost():
    segs = [*windows("r", "train", 40), *windows("r", "valid", 3, start=60), *windows("r", "test", 3, start=90)]
    with pytest.raises(ValueError, match=r"in no recording is the valid split long enough.*--set rows="):
        rows.shuffled_pairs(segs, seed=0)
