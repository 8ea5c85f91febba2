"""The whole flow on small simulated data: what a run leaves behind, and what it refuses."""

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import soundfile
from tiny_runs import TINY, Study, listeners, set_flags, tiny

from brainspeech import cli, flow, memory, segments
from brainspeech import recipe as recipes
from brainspeech.cache import Cache
from brainspeech.recipe import Choice

TOPK = ("top1", "top5", "top10")
ROWS = ["encoder", "linear_clip", "ridge", "noise", "shuffled", "constant", "ideal", "block_oracle"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """The cache that all but one of the runs of this file share."""
    return Cache(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def run(tmp_path, cache):
    """Run a recipe without bars into tmp_path/run."""

    def _run(recipe, out=tmp_path / "run", **options):
        return flow.run(recipe, **({"out": out, "cache": cache, "progress": False} | options))

    return _run


@pytest.fixture(scope="module")
def finished(tmp_path_factory, cache):
    """The folder of a finished run."""
    out = tmp_path_factory.mktemp("finished") / "run"
    flow.run(tiny(), out=out, cache=cache, progress=False)
    return out


@pytest.fixture(scope="module")
def report(finished):
    return json.loads((finished / "report.json").read_text())


# ------------------------------------------------------------------------------------------------------------ what a run leaves behind


def test_report_json_has_the_keys_that_outsiders_rely_on(report):
    assert report["n_candidates"] > 20
    assert report["chance"]["top10"] == pytest.approx(10 / report["n_candidates"])
    assert set(TOPK) <= set(report["chance"])
    assert list(report["rows"]) == ROWS
    for name, row in report["rows"].items():
        assert {*TOPK, "median_rank", "within_block_rank", "p_above_shuffled", "p_above_chance"} <= set(row), name
        for k in TOPK:
            value, low, high = (row[k][part] for part in ("value", "low", "high"))
            assert 0 <= value <= 1
            assert name == "block_oracle" or 0 <= low <= value <= high <= 1
    assert report["rows"]["encoder"]["p_above_shuffled"] is not None
    assert {"n_candidates", "rows"} <= set(report["disjoint"])
    assert report["disjoint"]["n_candidates"] < report["n_candidates"]
    assert (report["subjects"], report["folds"], report["seeds"]) == (2, 1, [2036])
    assert report["blocks"] > 2
    assert report["per_subject"]


def test_the_report_says_what_was_dropped_and_warns(report):
    assert report["dropped"]["windows: window leaves the block"] > 0
    assert any("Simulated EEG" in warning for warning in report["warnings"])
    assert any("permutations are too few" in warning for warning in report["warnings"])


def test_the_report_says_where_its_numbers_come_from(report):
    found = report["provenance"]
    assert found["recipe"] == tiny().to_dict()
    assert found["feature"]["n_mels"] == 8
    assert found["versions"]["torch"]
    assert found["device"]
    assert {"commit", "texts_on_two_sides"} <= set(found)


def test_a_run_folder_holds_its_files(finished):
    out = finished
    names = "recipe.json segments.json statistics.json metrics.jsonl report.json report.md report.html"
    assert [name for name in names.split() if not (out / name).is_file()] == []
    assert (out / "checkpoint" / "weights.safetensors").is_file()
    assert (out / "model").is_dir()
    assert list((out / "figures").glob("*.png"))
    assert sorted(p.name for p in (out / "fits").iterdir()) == [f"{row}-fold-1-seed-2036" for row in ("linear_clip", "noise", "shuffled")]
    assert len((out / "metrics.jsonl").read_text().splitlines()) == 2
    assert not [p for p in out.rglob("*") if p.suffix in (".pt", ".pkl", ".pickle", ".tmp")]


def test_the_same_seed_twice_gives_the_same_report(run, finished, tmp_path):
    run(tiny(), cache=Cache(tmp_path / "another cache"))
    assert (tmp_path / "run" / "report.json").read_bytes() == (finished / "report.json").read_bytes()


def test_the_encoder_of_another_seed_is_another(run, finished, tmp_path):
    other = run(tiny("seeds=7", "rows=encoder"))
    first = json.loads((finished / "metrics.jsonl").read_text().splitlines()[0])
    second = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    assert other.seeds == [7]
    assert first["train_loss"] != second["train_loss"]


# -------------------------------------------------------------------------------------------------------------- going on, and refusing


def test_a_finished_run_is_not_trained_again(run, finished):
    out = finished
    # An epoch's line holds how long it took: equal lines are the same epochs.
    metrics = {path: path.read_text() for path in out.rglob("metrics.jsonl")}
    before = (out / "report.json").read_bytes()
    assert len(metrics) == 4
    run(tiny(), out=finished)
    assert {path: path.read_text() for path in out.rglob("metrics.jsonl")} == metrics
    assert (out / "report.json").read_bytes() == before


def test_other_constants_in_the_same_folder_are_refused_by_name(run, finished):
    before = (finished / "recipe.json").read_text()
    with pytest.raises(ValueError, match=r"model\.options\.hidden \(was 8, now 16\), train\.lr \(was 0\.001, now 0\.01\).*--out DIR"):
        run(tiny("train.lr=0.01", "model.hidden=16"), out=finished)
    assert (finished / "recipe.json").read_text() == before


def test_a_run_that_never_got_to_a_fit_may_be_given_other_constants(run):
    with pytest.raises(ValueError, match="No window in the split test"):
        run(tiny("rows=encoder", "segments.test_ratio=0"))
    assert run(tiny("rows=encoder")).n_candidates > 20


def test_a_folder_of_something_else_is_refused(run, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match=r"is not empty and holds no run.*--out DIR"):
        run(tiny())
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["thesis.tex"]


def test_a_killed_run_goes_on_to_the_same_report(cache, tmp_path):
    """Killed without warning while the second row is fitted; the same command then gives what an uninterrupted run gives."""
    settings = [*TINY, "train.max_epochs=10", "train.patience=10", "rows=encoder,linear_clip"]
    command = ["run", "demo", "--quiet", "--cache", str(cache.root), *set_flags(settings), "--out"]
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    second = killed / "fits" / "linear_clip-fold-1-seed-2036" / "checkpoint"
    process = subprocess.Popen([sys.executable, "-m", "brainspeech.cli", *command, str(killed)], stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while not second.is_dir() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.001)
        os.kill(process.pid, signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == -signal.SIGKILL, "the run was over before it could be killed"
    n_epochs = len((second.parent / "metrics.jsonl").read_text().splitlines())
    assert n_epochs < 10
    assert not (killed / "report.json").exists()
    encoder = (killed / "metrics.jsonl").read_text()

    assert cli.main([*command, str(killed)]) == 0
    assert cli.main([*command, str(whole)]) == 0
    assert (killed / "metrics.jsonl").read_text() == encoder
    assert (killed / "report.json").read_bytes() == (whole / "report.json").read_bytes()


# -------------------------------------------------------------------------------------------------------------------- kinds of recipes


def test_features_may_hear_their_window_only(run, finished):
    recipe = tiny("context=window", "rows=encoder,ridge")
    found = run(recipe)
    other = json.loads((finished / "report.json").read_text())["rows"]["ridge"]
    assert found.provenance["recipe"]["context"] == "window"
    assert found.rows["ridge"]["top10"]["value"] > 2 * found.chance["top10"]
    # What a window's edge frames hear differs, so the ranks do.
    assert found.rows["ridge"] != other


PAPER = ("segments.protocol=paper", "segments.stride=0.5", "preprocess.sfreq=120", "segments.sfreq=120", "dataset.sfreq=240")


def test_the_papers_protocol_runs(run):
    found = run(tiny(*PAPER, "dataset.n_subjects=1", "rows=encoder,ridge"))
    constants = found.provenance["recipe"]
    assert constants["loss"]["options"] == {"duplicates": "negative"}
    assert constants["model"]["options"]["generic_subject"] is False
    assert any("are negatives of each other" in warning for warning in found.warnings)
    assert found.rows["ridge"]["top10"]["value"] > 2 * found.chance["top10"]


def test_the_papers_protocol_is_refused_where_clocks_put_one_sound_on_two_sides(run, tmp_path):
    with pytest.raises(RuntimeError, match=r"leaks in \d+ places.*story-.*stands in.*segments\.protocol=clean"):
        run(tiny(*PAPER, "dataset.n_subjects=3", "rows=encoder"))
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def reversed_too(recordings, stimuli):
    """Add each story backwards, as something that was not heard."""
    stimuli |= {f"reversed-{audio}": (sound[..., ::-1].copy(), sfreq) for audio, (sound, sfreq) in stimuli.items()}


def test_folds_are_pooled_over_seeds_and_rescored(run, tmp_path):
    study = Study(reversed_too, minutes=7.5)
    names = study.audios()
    recipe = study.recipe(
        folds="leave_one_out",
        seeds=(1, 2),
        segments=dataclasses.replace(tiny().segments, test_anchors="grid", test_stride=3.0),
        rows=("encoder", "ridge", "constant"),
        rescore={"reversed": {audio: f"reversed-{audio}" for audio in names}},
    )
    found = run(recipe)
    assert list(found.rows) == ["encoder", "encoder_reversed", "ridge", "ridge_reversed", "constant", "block_oracle"]
    assert (found.folds, found.seeds) == (3, [1, 2])
    folds = segments.load(tmp_path / "run" / "segments.json")
    tested = [{s.spans[0].audio for s in fold.segments if s.split == "test"} for fold in folds]
    assert sorted(map(sorted, tested)) == [[name] for name in names]
    assert found.n_candidates == sum(len({s.stimulus_id for s in fold.segments if s.split == "test"}) for fold in folds)
    # The ridge follows what was heard, not its reversal.
    assert found.rows["ridge"]["p_above_chance"] < 0.01
    assert found.rows["ridge"]["top10"]["value"] > 2 * found.rows["ridge_reversed"]["top10"]["value"]
    assert any("Splits assigned by name: each of the 3 stimuli" in warning for warning in found.warnings)
    assert len(found.warnings) == len(set(found.warnings))
    assert any("(over 3 folds)" in reason for reason in found.dropped)
    fits = sorted(p.name for p in (tmp_path / "run" / "fits").iterdir())
    assert fits == sorted(f"encoder-fold-{k}-seed-{s}" for k in (1, 2, 3) for s in (1, 2) if (k, s) != (1, 1))
    assert len(list((tmp_path / "run").glob("statistics-fold-*.json"))) == 3


def test_a_subject_without_training_data_is_named(run, tmp_path):
    def second_hears_only(recordings, stimuli):
        recordings[:] = [r for r in recordings if (r["subject"], r["run"]) != ("02", "02")]

    study = Study(second_hears_only)
    recipe = study.recipe(
        rows=("encoder", "linear_clip", "ridge"),
        segments=dataclasses.replace(study.recipe().segments, assign={"story-01.wav": "test"}),
    )
    found = run(recipe)
    assert found.subjects == 2
    said = "\n".join(found.warnings)
    assert "1 test subjects have no training data (study/sub-02); the encoder uses the generic subject layer for them." in said
    assert "2 recordings have no training window of their own and are scaled with statistics of " in said

    averaged = recipes.change(recipe, ["model.generic_subject=False", "rows=encoder"])
    found = run(averaged, tmp_path / "averaged")
    assert any("the encoder uses the average of the subject layers" in w for w in found.warnings)


def test_recordings_with_different_sensors_are_decoded_together(run, tmp_path):
    def fewer_sensors(recordings, stimuli):
        for r in recordings:
            if r["subject"] == "02":
                r |= {key: r[key][2:] for key in ("signal", "ch_names", "positions")}

    found = run(Study(fewer_sensors).recipe(rows=("encoder", "linear_clip", "ridge", "noise")))
    assert found.rows["ridge"]["top10"]["value"] > 2 * found.chance["top10"]
    # One axis for all: the six sensors of one listener hold the four of the other.
    statistics = json.loads((tmp_path / "run" / "statistics.json").read_text())
    assert sorted({len(scale["ch_names"]) for scale in statistics["scales"].values()}) == [4, 6]


# --------------------------------------------------------------------------------------------------------------------------- bad input


def test_channels_that_are_nan_or_flat_are_left_out_and_counted(run):
    def break_sensors(recordings, stimuli):
        recordings[0]["signal"][1, 100] = np.nan
        recordings[1]["signal"][2] = 1e-6

    found = run(Study(break_sensors).recipe(rows=("encoder", "ridge")))
    assert (found.dropped["channels: not finite"], found.dropped["channels: flat"]) == (1, 1)


def test_a_recording_without_a_good_channel_is_an_error_that_names_it(run):
    def break_all(recordings, stimuli):
        recordings[0]["signal"][:] = np.nan

    with pytest.raises(RuntimeError, match=r"study/sub-01/run-01: no usable channel remains: .* \(not finite\)"):
        run(Study(break_all).recipe(rows=("encoder",)))


def test_a_recording_shorter_than_a_window_is_counted_and_named(run):
    def cut_short(recordings, stimuli):
        recordings[0]["signal"] = recordings[0]["signal"][:, : int(2.9 * recordings[0]["sfreq"])]

    found = run(Study(cut_short).recipe(rows=("encoder", "ridge")))
    assert found.dropped["windows: recordings shorter than a window"] == 1
    assert "1 recordings shorter than a window: study/sub-01/run-01." in found.warnings


def test_onsets_in_milliseconds_are_refused_with_the_likely_cause(run):
    def in_ms(recordings, stimuli):
        for recording in recordings:
            recording["events"] = recording["events"].assign(onset=1000 * recording["events"]["onset"])

    with pytest.raises(ValueError, match=r"(?s)most events begin after the end.*are they in ms"):
        run(Study(in_ms).recipe(rows=("encoder", "ridge")))


def test_events_past_the_end_are_counted_and_named(run):
    def end_early(recordings, stimuli):
        recordings[0]["signal"] = recordings[0]["signal"][:, : int(100 * recordings[0]["sfreq"])]

    found = run(Study(end_early).recipe(rows=("encoder", "ridge")))
    assert found.dropped["windows: events past the end of the recording"] > 10
    assert found.dropped["windows: recording ends"] > 0
    assert any(w.startswith("study/sub-01/run-01: ") and "begin after the recording's end at 100 s" in w for w in found.warnings)


def test_channels_without_a_position_are_counted(run):
    def lose_positions(recordings, stimuli):
        for recording in recordings:
            recording["positions"] = np.where(np.arange(len(recording["ch_names"]))[:, None] < 2, np.nan, recording["positions"])

    found = run(Study(lose_positions).recipe(rows=("encoder", "ridge")))
    assert found.dropped["channels: without a position, not seen by spatial attention"] == 2 * len(Study().recordings)


def test_an_empty_split_is_an_error_that_says_what_to_change(run):
    with pytest.raises(ValueError, match=r"No window in the split valid: .*assign splits by name"):
        run(tiny("segments.valid_ratio=0", "rows=encoder"))


def test_a_missing_wav_is_named(run, tmp_path):
    def on_disk(recordings, stimuli):
        stimuli.clear()

    with pytest.raises(FileNotFoundError, match=r"story-01\.wav"):
        run(Study(on_disk).recipe(rows=("encoder",)), root=tmp_path)


def test_stereo_and_slow_wavs_are_heard_and_counted(run, tmp_path):
    def on_disk(recordings, stimuli):
        stimuli.clear()

    sounds = listeners().stimuli
    first, sfreq = sounds["story-01.wav"]
    second, _ = sounds["story-02.wav"]
    soundfile.write(tmp_path / "story-01.wav", np.concatenate([first, 0.5 * first]).T, int(sfreq))
    soundfile.write(tmp_path / "story-02.wav", second[0, ::2], int(sfreq) // 2)
    found = run(Study(on_disk).recipe(rows=("encoder", "ridge")), root=tmp_path)
    assert found.dropped["stimuli: stereo sound averaged"] == 1
    assert found.dropped["stimuli: sound sampled below 16 kHz"] == 1
    assert found.rows["ridge"]["p_above_chance"] < 0.01


def test_a_sound_that_is_shorter_than_its_events_say_is_an_error(run):
    def cut_sound(recordings, stimuli):
        sound, sfreq = stimuli["story-02.wav"]
        stimuli["story-02.wav"] = (sound[:, : int(60 * sfreq)], sfreq)

    with pytest.raises(ValueError, match=r"stimulus 'story-02\.wav' is too short"):
        run(Study(cut_sound).recipe(rows=("encoder",)))


def test_a_dataset_without_recordings_is_an_error(run):
    with pytest.raises(ValueError, match="lists no recording"):
        run(Study(lambda recordings, stimuli: recordings.clear()).recipe())


def test_wrong_options_are_found_before_anything_is_computed(run, tmp_path):
    recipe = dataclasses.replace(tiny(), model=Choice("conv", {"hiden": 8}))
    with pytest.raises(ValueError, match=r"demo: model 'conv' has no option hiden; it takes .*hidden"):
        run(recipe)
    with pytest.raises(ValueError, match=r"segments\.sfreq is 30 Hz and preprocess\.sfreq is 40 Hz"):
        run(tiny("preprocess.sfreq=40"))
    assert not (tmp_path / "run").exists()


# ------------------------------------------------------------------------------------------------------------------ describe


def test_describe_counts_the_segments_of_a_run(report):
    found = flow.describe(tiny(), None)
    assert found["splits"]["test"]["segments"] == report["n_candidates"]


# --------------------------------------------------------------------------------------------------------------- subjects left out


def test_every_subject_is_left_out_of_training_once_and_tested_then(run, tmp_path):
    recipe = tiny("dataset.n_subjects=3", "folds=leave_subject_out", "rows=encoder,ridge")
    result = run(recipe)
    folds = segments.load(tmp_path / "run" / "segments.json")
    whole = flow.segment(tiny("dataset.n_subjects=3"), flow.prepare(recipe, None, Cache(tmp_path / "cache"), progress=False))[0]
    assert len(folds) == result.folds == result.subjects == 3
    for fold in folds:
        tested = {s.subject for s in fold.segments if s.split == "test"}
        assert len(tested) == 1
        assert tested.isdisjoint({s.subject for s in fold.segments if s.split != "test"})
        model = tmp_path / "run" / "model" / "config.json"
        assert len(json.loads(model.read_text())["subjects"]) == 2
    assert result.n_windows == sum(s.split == "test" for s in whole.segments)
    assert result.dropped["windows: window leaves the block"] == whole.dropped["window leaves the block"]  # once, not once for each fold
    # The left-out subject's channels have a scale of their own.
    assert not any("scaled with statistics of" in warning for warning in result.warnings)
    assert any("left out of training once" in warning for warning in result.warnings)


def test_leaving_subjects_out_needs_two_of_them(run):
    with pytest.raises(RuntimeError, match="at least 2 subjects, got 1"):
        run(tiny("dataset.n_subjects=1", "folds=leave_subject_out"))


# ------------------------------------------------------------------------------------------------------ what may change in a finished run


def test_a_finished_run_may_be_evaluated_and_kept_in_another_way_but_not_trained_in_another(finished, tmp_path):
    changes = ("evaluate.confidence=0.5", "train.checkpoint_minutes=3", "train.resident=never")
    flow.claim(shutil.copytree(finished, tmp_path / "a"), tiny(*changes), root=None, source="")
    with pytest.raises(ValueError, match=r"train\.lr"):
        flow.claim(shutil.copytree(finished, tmp_path / "b"), tiny("train.lr=0.5"), root=None, source="")


def test_an_audio_encoder_is_trained_with_the_encoder(run, tmp_path):
    settings = ("target_encoder=deep_mel", "target_encoder.n_outputs=5", "target_encoder.hidden=6", "target_encoder.depth=2")
    result = run(tiny(*settings, "rows=encoder,constant"))
    assert result.rows["encoder"]["n_nan"] == 0
    assert json.loads((tmp_path / "run" / "model" / "config.json").read_text())["model_config"]["n_features"] == 5
    again = recipes.restore(recipes.load("demo"), json.loads((tmp_path / "run" / "recipe.json").read_text())["recipe"])
    assert again.target_encoder == Choice("deep_mel", {"n_outputs": 5, "hidden": 6, "depth": 2})


def test_the_cache_that_prepare_fills_is_the_one_that_a_run_reads(tmp_path):
    cache = Cache(tmp_path / "cache")
    done = flow.fill_cache(tiny(), None, cache, progress=False)
    assert (done["recordings"], done["channels"]) == (4, 6)
    entries = set(cache.entries())
    flow.run(tiny("rows=encoder"), out=tmp_path / "run", cache=cache, progress=False)
    # Nothing is added but what the look for sound in the recordings keeps.
    assert {entry.parent.parent.name for entry in set(cache.entries()) - entries} <= {"quality", "sounds"}


# ----------------------------------------------------------------------------------------------------------------- what is decoded


def test_a_run_says_which_words_are_decoded_and_relates_them_when_asked(report, run):
    words = report["curves"]["decoded"]["words"]["groups"]["all"]
    assert words["windows"] == report["n_windows"]
    assert not report["curves"]["decoded"]["regression"]
    asked = run(tiny("rows=encoder", "evaluate.regression=frequency")).curves["decoded"]["regression"]
    assert "frequency" in json.dumps(asked)


def test_a_fit_on_a_cpu_keeps_freed_memory(run, monkeypatch):
    entered = []
    monkeypatch.setattr(memory, "kept", lambda: contextlib.nullcontext(entered.append(1)))
    run(tiny("rows=encoder"))
    assert entered == [1]
