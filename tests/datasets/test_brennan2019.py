"""Alice in Wonderland: both forms of a miniature, and the published counts and the nine shifted recordings on the real side files."""

import json
import math
import shutil
import time
import tomllib

import numpy as np
import pandas as pd
import pytest
import scipy.io
import soundfile
from eeg_miniatures import (
    BRENNAN_NAMES,
    BRENNAN_SOUND,
    NARROW,
    brennan_eeg,
    brennan_starts,
    brennan_words,
    write_brainvision,
    write_brennan_bids,
    write_brennan_deep_blue,
    write_brennan_tables,
)

from brainspeech import cli, flow, segments
from brainspeech import recipe as recipes
from brainspeech.cache import Cache
from brainspeech.datasets import load
from brainspeech.datasets.brennan2019 import AUDIO, AUDIO_SECONDS, PUBLISHED, SHIFTED
from brainspeech.preprocess import PreprocessConfig, preprocess


@pytest.fixture(scope="module")
def bids(tmp_path_factory):
    return write_brennan_bids(tmp_path_factory.mktemp("nm000180"))


@pytest.fixture(scope="module")
def deep_blue(tmp_path_factory):
    return write_brennan_deep_blue(tmp_path_factory.mktemp("bg257f92t"))


@pytest.fixture(params=["bids", "deep_blue"])
def root(request):
    return request.getfixturevalue(request.param)


def uids(dataset):
    return [r.uid for r in dataset.recordings()]


# ------------------------------------------------------------------------------------------------------------------------ recordings


def test_both_forms_list_the_same_recordings_and_say_who_is_left_out(bids, deep_blue):
    two, also_two = load("brennan2019", bids), load("brennan2019", deep_blue)
    assert uids(two) == uids(also_two) == ["brennan2019/sub-001", "brennan2019/sub-026"]
    assert [r.path for r in two.recordings()] == [f"sub-{k}/eeg/sub-{k}_task-alicelistening_eeg.vhdr" for k in ("001", "026")]
    assert [r.path for r in also_two.recordings()] == ["S01.mat", "S26.mat"]
    assert two.excluded == dict.fromkeys(["028", "049"], "no word times were published (noisy)")
    assert set(also_two.excluded) == {"049"}


def test_published_leaves_the_shifted_recordings_out_and_counts_them(bids):
    dataset = load("brennan2019", bids, subjects="published")
    assert uids(dataset) == ["brennan2019/sub-001"]
    assert "not among the reference's 33" in dataset.excluded["026"]
    assert dataset.notes == []


def test_the_reference_s_33_are_those_of_the_manifest(request):
    path = request.config.rootpath / "data_manifests" / "brennan2019.toml"
    spec = tomllib.loads(path.read_text())["published"]
    numbers = {k for part in spec.split(",") for low, _, high in [part.partition("-")] for k in range(int(low), int(high or low) + 1)}
    assert numbers == PUBLISHED
    assert len(PUBLISHED) == 33


def test_a_folder_of_side_files_lists_everyone_and_says_that_lengths_are_open(tmp_path):
    write_brennan_tables(tmp_path, "sourcedata")
    dataset = load("brennan2019", tmp_path)
    assert uids(dataset) == ["brennan2019/sub-001", "brennan2019/sub-026"]
    assert [dataset.duration(r) for r in dataset.recordings()] == [math.inf, math.inf]
    found = flow.describe(recipes.change(recipes.load("brennan2019"), NARROW), tmp_path)
    assert any("2 recordings are open-ended" in said for said in found["warnings"])
    with pytest.raises(FileNotFoundError, match="brainspeech download brennan2019"):
        dataset.read_raw(dataset.recordings()[0])


def test_once_any_eeg_is_there_subjects_without_theirs_are_counted(bids, tmp_path):
    shutil.copytree(bids, tmp_path / "part")
    (tmp_path / "part/sub-026/eeg/sub-026_task-alicelistening_eeg.vhdr").unlink()
    dataset = load("brennan2019", tmp_path / "part")
    assert uids(dataset) == ["brennan2019/sub-001"]
    assert dataset.excluded["026"] == "its EEG is not in this folder"


def test_mistakes_say_what_to_do(bids, tmp_path):
    with pytest.raises(ValueError, match="onsets must be one of corrected, published, got 'early'"):
        load("brennan2019", bids, onsets="early")
    with pytest.raises(ValueError, match="subjects must be all or published"):
        load("brennan2019", bids, subjects="some")
    with pytest.raises(ValueError, match="root=DIR"):
        load("brennan2019")
    with pytest.raises(FileNotFoundError, match="brainspeech download brennan2019"):
        load("brennan2019", tmp_path)


# ------------------------------------------------------------------------------------------------------------------------------- EEG


def test_raw_has_60_positions_in_volt_and_the_sound_is_no_eeg(root):
    dataset = load("brennan2019", root)
    for recording, subject in zip(dataset.recordings(), (1, 26), strict=True):
        raw = dataset.read_raw(recording)
        types = dict(zip(raw.ch_names, raw.get_channel_types(), strict=True))
        assert sum(kind == "eeg" for kind in types.values()) == 60
        assert "29" not in types
        assert types["VEOG"] == "eog"
        assert [kind for name, kind in types.items() if name in ("AUD", "Aux5")] in (["misc"], [])
        truth = brennan_eeg(subject)
        np.testing.assert_allclose(raw.get_data()[:60], truth[:60], atol=1e-8)
        assert dataset.duration(recording) == pytest.approx(truth.shape[1] / 500)
        signal = preprocess(raw, PreprocessConfig(sfreq=100.0), uid=recording.uid)
        assert len(signal.ch_names) == 60
        assert np.isfinite(signal.positions).all()


def test_a_form_without_aud_has_no_aud(deep_blue):
    dataset = load("brennan2019", deep_blue)
    assert ["AUD" in dataset.read_raw(r).ch_names for r in dataset.recordings()] == [True, False]


def test_of_several_forms_bids_wins_then_the_second_release(bids, deep_blue, tmp_path):
    shutil.copytree(deep_blue, tmp_path / "all")
    write_brainvision(tmp_path / "all/S01.vhdr", brennan_eeg(1), 500.0, BRENNAN_NAMES)
    dataset = load("brennan2019", tmp_path / "all")
    assert [r.path for r in dataset.recordings()] == ["S01.vhdr", "S26.mat"]
    np.testing.assert_allclose(dataset.read_raw(dataset.recordings()[0]).get_data()[:60], brennan_eeg(1)[:60], atol=1e-8)
    shutil.copytree(bids, tmp_path / "all", dirs_exist_ok=True)
    assert load("brennan2019", tmp_path / "all").recordings()[0].path == "sub-001/eeg/sub-001_task-alicelistening_eeg.vhdr"


def test_eeg_with_other_channels_is_refused(deep_blue, tmp_path):
    shutil.copytree(deep_blue, tmp_path / "part")
    label = np.array([f"E{k}" for k in range(62)], dtype=object)[:, None]
    trial = np.empty(1, dtype=object)
    trial[0] = np.zeros((62, 500))
    scipy.io.savemat(tmp_path / "part/S01.mat", {"raw": {"hdr": {"Fs": 500.0, "label": label}, "trial": trial}})
    dataset = load("brennan2019", tmp_path / "part")
    with pytest.raises(RuntimeError, match=r"sub-001: expected the 60 EEG channels .* got 62 channels at 500 Hz .62 unknown: E0, E1"):
        dataset.read_raw(dataset.recordings()[0])
    scipy.io.savemat(tmp_path / "part/S01.mat", {"proc": {"trl": np.zeros((3, 6))}})
    with pytest.raises(RuntimeError, match="expected a FieldTrip struct raw"):
        dataset.read_raw(dataset.recordings()[0])


def test_the_fingerprint_follows_the_samples(bids, tmp_path):
    shutil.copytree(bids, tmp_path / "part")
    dataset = load("brennan2019", tmp_path / "part")
    recording = dataset.recordings()[0]
    before = dataset.fingerprint(recording)
    assert before == dataset.fingerprint(recording)
    samples = (tmp_path / "part" / recording.path).with_suffix(".eeg")
    samples.write_bytes(samples.read_bytes() + bytes(248))
    assert dataset.fingerprint(recording) != before


# ---------------------------------------------------------------------------------------------------------------------------- events


def test_words_are_where_they_were_heard_and_labels_moved_up_where_they_must(root):
    dataset, words = load("brennan2019", root), brennan_words()
    for recording, subject in zip(dataset.recordings(), (1, 26), strict=True):
        table = dataset.read_events(recording)
        starts = {AUDIO.format(k + 1): start for k, start in enumerate(brennan_starts(subject)) if start > 0}
        sounds = table[table["kind"] == "sound"].set_index("audio")
        assert sounds["onset"].to_dict() == pytest.approx(starts, abs=0.002)
        assert set(sounds["duration"]) == {BRENNAN_SOUND}
        heard = table[table["kind"] == "word"]
        truth = words[[AUDIO.format(k) in starts for k in words["Segment"]]]
        assert len(heard) == len(truth)
        np.testing.assert_allclose(heard["onset"], [starts[AUDIO.format(k)] for k in truth["Segment"]] + truth["onset"], atol=0.0021)
        np.testing.assert_allclose(heard["audio_onset"], truth["onset"])
        assert heard["text"].tolist() == truth["Word"].replace("TRUE", "true").tolist()
        assert heard["sequence"].tolist() == truth["Sentence"].astype(str).tolist()
    assert "true" in heard["text"].tolist()
    assert any("1: 026" in note and "k + 1" in note for note in dataset.notes)


def test_both_forms_and_events_alone_say_the_same(bids, deep_blue, tmp_path):
    shutil.copytree(bids, tmp_path / "part")
    shutil.rmtree(tmp_path / "part/sourcedata/proc")
    datasets = [load("brennan2019", folder) for folder in (bids, deep_blue, tmp_path / "part")]
    for recordings in zip(*(dataset.recordings() for dataset in datasets), strict=True):
        tables = [dataset.read_events(recording) for dataset, recording in zip(datasets, recordings, strict=True)]
        for table in tables[1:]:
            pd.testing.assert_frame_equal(table, tables[0], atol=1e-6)


@pytest.mark.parametrize("source", ["proc", "events.tsv"])
def test_published_onsets_are_one_offset_early_whatever_they_are_read_from(bids, tmp_path, source):
    shutil.copytree(bids, tmp_path / "part")
    if source == "events.tsv":
        shutil.rmtree(tmp_path / "part/sourcedata/proc")
    right, early = (load("brennan2019", tmp_path / "part", onsets=onsets) for onsets in ("corrected", "published"))
    for recording in right.recordings():
        difference = right.read_events(recording)["onset"] - early.read_events(recording)["onset"]
        np.testing.assert_allclose(difference, 0.3, atol=1e-9)
    assert any("0.3 s too early" in note for note in early.notes)


def test_proc_wins_over_events_and_labels_that_are_right_stay(bids, tmp_path):
    shutil.copytree(bids, tmp_path / "part")
    path = tmp_path / "part/sub-026/eeg/sub-026_task-alicelistening_events.tsv"
    table = pd.read_csv(path, sep="\t")
    # As a corrected release would have it: sounds 2 to 4.
    words = brennan_words()
    right = words[words["Segment"] > 1]
    onset = [brennan_starts(26)[k - 1] for k in right["Segment"]] + right["onset"]
    fixed = pd.DataFrame({"onset": onset.to_numpy(), "word_index": right["Order"].to_numpy(), "segment": right["Segment"].to_numpy()})
    fixed.reindex(columns=table.columns).to_csv(path, sep="\t", index=False)
    dataset = load("brennan2019", tmp_path / "part")
    by_proc = dataset.read_events(dataset.recordings()[1])
    shutil.rmtree(tmp_path / "part/sourcedata/proc")
    by_events = dataset.read_events(dataset.recordings()[1])
    pd.testing.assert_frame_equal(by_events, by_proc, atol=0.0021)


def test_proc_files_that_count_otherwise_are_refused(bids, tmp_path):
    shutil.copytree(bids, tmp_path / "part")
    dataset = load("brennan2019", tmp_path / "part")
    path = tmp_path / "part/sourcedata/proc/S01.mat"
    trl = scipy.io.loadmat(path)["proc"]["trl"][0, 0].copy()
    varnames = np.array(["segment", "tmin", "Order"], dtype=object)
    trl[3, 2] = -100
    scipy.io.savemat(path, {"proc": {"trl": trl, "varnames": varnames}})
    with pytest.raises(RuntimeError, match=r"with the offsets \[-150.0, -100.0\]"):
        dataset.read_events(dataset.recordings()[0])
    trl[3, 2], trl[3, 5] = -150, 9999
    scipy.io.savemat(path, {"proc": {"trl": trl, "varnames": varnames}})
    with pytest.raises(RuntimeError, match="1 words are not in"):
        dataset.read_events(dataset.recordings()[0])


def test_sounds_have_one_name_in_both_forms(root):
    dataset = load("brennan2019", root)
    data, sfreq = dataset.read_stimulus(AUDIO.format(2))
    assert data.shape == (1, round(BRENNAN_SOUND * sfreq))
    assert dataset.stimulus_fingerprint(AUDIO.format(2)) != dataset.stimulus_fingerprint(AUDIO.format(3))
    with pytest.raises(FileNotFoundError, match="SoundFile9"):
        dataset.read_stimulus(AUDIO.format(9))


# --------------------------------------------------------------------------------------------------------------------------- the flow


def test_the_recipe_runs_end_to_end(bids, tmp_path):
    recipe = recipes.change(recipes.load("brennan2019"), NARROW)
    report = flow.run(recipe, root=bids, out=tmp_path / "run", cache=Cache(tmp_path / "cache"), progress=False)
    assert len(report.per_subject) == 2
    assert report.n_candidates > 10
    assert 0 <= report.rows["encoder"]["top10"]["value"] <= 1


def test_the_recipe_has_the_paper_s_constants():
    recipe = recipes.load("brennan2019")
    assert (recipe.train.lr, recipe.train.batch_size, recipe.batches.lag, recipe.feature.name) == (3e-4, 256, 0.15, "wav2vec2")
    assert recipe.model.name == "conv"
    assert recipe.model.options["generic_subject"]
    assert recipe.segments == segments.SegmentConfig(valid_ratio=0.2)
    paper = recipes.settle(recipes.change(recipe, ["segments.protocol=paper"]))
    assert paper.segments == segments.SegmentConfig(protocol="paper")


# ----------------------------------------------------------------------------------------------------------------------- the real data


def counts(dataset, protocol):
    """Describe a dataset from its events and lengths alone."""
    recordings = dataset.recordings()
    tables = {r.uid: dataset.read_events(r) for r in recordings}
    durations = {r.uid: dataset.duration(r) for r in recordings}
    made = segments.make_segments(recordings, tables, durations, segments.SegmentConfig(protocol=protocol))
    return made, segments.describe(made, tables)


@pytest.mark.data
def test_the_published_counts(shared):
    dataset = load("brennan2019", shared / "data/brennan2019", onsets="published", subjects="published")
    assert len(dataset.recordings()) == 33
    _, found = counts(dataset, "paper")
    train, test = found["splits"]["train"], found["splits"]["test"]
    assert (train["segments"], train["vocabulary"]) == (1211, 513)
    assert (test["segments"], test["vocabulary"]) == (190, 148)
    assert round(100 * found["vocabulary_overlap"], 1) == 59.5
    tables = [dataset.read_events(r) for r in dataset.recordings()]
    assert sum((t["onset"] + t["duration"]).max() for t in tables) / 3600 == pytest.approx(6.7, abs=0.05)  # the reference's hours


@pytest.mark.data
@pytest.mark.parametrize("protocol", ["clean", "paper"])
def test_all_42_are_described_in_seconds_and_leak_nowhere(shared, protocol):
    begin = time.process_time()
    dataset = load("brennan2019", shared / "data/brennan2019")
    made, found = counts(dataset, protocol)
    assert time.process_time() - begin < 10
    assert len(dataset.recordings()) == 42
    assert set(dataset.excluded) == {"028", "029", "031", "033", "046", "047", "049"}
    assert segments.audit(made.segments, made.blocks).errors == []
    # The nine hear the same test candidates as the others, as far as they heard them.
    shifted = {f"brennan2019/sub-{k:03d}" for k in SHIFTED}
    ids = [{s.stimulus_id for s in made.segments if s.split == "test" and (s.recording in shifted) is side} for side in (True, False)]
    assert ids[0] <= ids[1]
    assert len(ids[0]) > 0.8 * len(ids[1])
    assert found["splits"]["test"]["segments"] == len(ids[1])


@pytest.mark.data
def test_the_evidence_for_moving_nine_recordings_up_by_one(shared):
    """Gaps between sounds, from the real proc files: as labelled they disagree, moved up by one they agree, and what is missing fits."""
    source = shared / "data/brennan2019/sourcedata"
    words = pd.read_csv(source / "AliceChapterOne-EEG.csv", keep_default_na=False).set_index("Order")
    starts, missing = {}, {}
    for path in sorted((source / "proc").glob("S*.mat")):
        trl = scipy.io.loadmat(path)["proc"]["trl"][0, 0]
        assert set(trl[:, 2]) == {-150.0}
        begin = pd.Series((trl[:, 0] - trl[:, 2]) / 500 - words.loc[trl[:, 5].astype(int), "onset"].to_numpy())
        by_label = begin.groupby(trl[:, 3].astype(int))
        assert (by_label.max() - by_label.min()).max() < 0.003  # one trigger for each label
        starts[int(path.stem[1:])] = by_label.first()
        missing[int(path.stem[1:])] = words[~words.index.isin(trl[:, 5].astype(int))]
    assert sorted(k for k, lost in missing.items() if len(lost)) == sorted(SHIFTED)
    gaps = pd.DataFrame({k: own.diff() for k, own in starts.items()}).loc[2:]
    complete = gaps.drop(columns=list(SHIFTED))
    usual = complete.median(axis=1)
    assert (complete.max(axis=1) - complete.min(axis=1)).max() < 0.08
    for k in SHIFTED:
        as_labelled = (gaps[k] - usual).abs()
        moved_up = (gaps[k].shift(1) - usual).abs()
        assert len(as_labelled.dropna()) == 10
        assert as_labelled.max() > 6.5
        assert moved_up.max() < 0.04
        # Sound 1 began before the recording did, and the words of the label that was not given out are missing.
        assert -4 < starts[k][1] - usual[2] < 0
        lost = missing[k]["Segment"].value_counts()
        assert lost[12] == (words["Segment"] == 12).sum()
        assert lost.index.isin([11, 12]).all()
        assert 5 <= lost[11] <= 19


@pytest.mark.data
def test_the_bids_events_are_the_corrected_ones_and_the_word_true_is_a_word(shared, tmp_path):
    root = shared / "data/brennan2019"
    (tmp_path / "sourcedata").mkdir()
    shutil.copy(root / "sourcedata/AliceChapterOne-EEG.csv", tmp_path / "sourcedata")
    for subject in ("sub-001", "sub-013"):
        shutil.copytree(root / subject, tmp_path / subject)
    by_proc, by_events = load("brennan2019", root), load("brennan2019", tmp_path)
    for recording in by_events.recordings():
        table = by_events.read_events(recording)
        pd.testing.assert_frame_equal(table, by_proc.read_events(recording), atol=1e-6)
        words = table[table["kind"] == "word"]
        assert len(words) == 2129
        assert words["text"].iloc[509] == "true"
        assert by_events.duration(recording) == pytest.approx({"001": 733.05, "013": 736.55}[recording.subject])
        assert words["onset"].max() + 2.5 < by_events.duration(recording)


@pytest.mark.data
def test_sounds_are_as_long_as_is_said(shared):
    wav = shared / "data/brennan2019/stimuli/DownTheRabbitHoleFinal_SoundFile12.wav"
    assert soundfile.info(wav).duration == pytest.approx(AUDIO_SECONDS[11], abs=1e-6)
    assert sum(AUDIO_SECONDS) == pytest.approx(723.54, abs=0.01)


@pytest.mark.data
@pytest.mark.parametrize(
    "flags",
    [
        ["--protocol", "paper", "--onsets", "published", "--subjects", "published"],
        ["--set", "segments.protocol=paper", "--set", "dataset.onsets=published", "--set", "dataset.subjects=published"],
    ],
)
def test_describe_gives_the_published_counts_through_the_recipe(shared, capsys, flags):
    assert cli.main(["describe", "brennan2019", "--root", str(shared / "data/brennan2019"), "--json", *flags]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["subjects"], found["recordings"]) == (33, 33)
    splits = {split: (own["segments"], own["vocabulary"]) for split, own in found["splits"].items()}
    assert (splits["train"], splits["test"]) == ((1211, 513), (190, 148))
    assert found["vocabulary_overlap"] == pytest.approx(0.595, abs=5e-4)
    assert found["dropped"]["recordings: left out by subjects=published"] == 9
    assert not any("k + 1" in said for said in found["warnings"])  # nobody whose labels were moved is among the 33
    assert any("in 0 of 33 recordings a stimulus is cut into other blocks" in said for said in found["warnings"])


@pytest.mark.data
def test_the_recipe_has_several_blocks_on_each_side(shared, capsys):
    """With the reference's 0.1 the clean protocol has one block of 18 windows on the valid side."""
    assert cli.main(["describe", "brennan2019", "--root", str(shared / "data/brennan2019"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["subjects"], found["splits"]["test"]["segments"]) == (42, 495)
    assert found["splits"]["valid"]["segments"] > 100
    assert any("(9: 002, 024," in said for said in found["warnings"])
