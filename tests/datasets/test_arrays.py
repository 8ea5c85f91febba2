"""A user's own arrays and files: read as said, refused with a cure where what is said does not fit."""

import os
from pathlib import Path

import mne
import numpy as np
import pandas as pd
import pytest
import scipy.io
import soundfile

from brainspeech.datasets import load
from brainspeech.datasets.arrays import ArrayRecording, ArraysDataset, ArrayStimulus

SHARED = Path(os.environ.get("BRAINSPEECH_SHARED", Path(__file__).parents[3] / "shared"))
SOUND = {"kind": "sound", "onset": 1.0, "duration": 4.0, "audio": "a"}
WORD = {"kind": "word", "onset": 2.5, "duration": 0.3, "text": "tea"}


@pytest.fixture
def samples():
    return np.random.default_rng(0).normal(0, 10, (4, 640))


def make(signal, *, root=None, stimuli=None, **fields):
    fields = {"subject": "01", "signal": signal, "sfreq": 128.0, "events": [SOUND, WORD], "unit": "V", **fields}
    return ArraysDataset(root, recordings=[fields], stimuli=stimuli)


def read(dataset):
    return dataset.read_raw(dataset.recordings()[0])


def positions_of(raw):
    return np.array([channel["loc"][:3] for channel in raw.info["chs"]])


def test_an_array_comes_out_in_volt_with_default_names(samples):
    before = samples.copy()
    raw = read(make(samples, unit="uV"))
    np.testing.assert_allclose(raw.get_data(), samples * 1e-6, rtol=1e-12)
    assert raw.ch_names == ["EEG001", "EEG002", "EEG003", "EEG004"]
    assert raw.get_channel_types() == ["eeg"] * 4
    assert raw.info["sfreq"] == 128.0
    assert np.isnan(positions_of(raw)).all()  # unknown is not the origin
    np.testing.assert_array_equal(samples, before)


def test_load_by_name_makes_the_same_dataset(samples):
    recording = {"subject": "01", "signal": samples, "sfreq": 128, "events": []}
    dataset = load("arrays", recordings=[recording, ArrayRecording("00", samples, 128, [], run="2")])
    assert [r.uid for r in dataset.recordings()] == ["arrays/sub-00/run-2", "arrays/sub-01"]
    assert len(dataset.read_events(dataset.recordings()[0])) == 0


def test_types_and_units_one_for_each_channel(samples):
    raw = read(make(samples, ch_types=["mag", "grad", "eeg", "misc"], unit=["fT", "fT/cm", "\N{MICRO SIGN}V", 2.0], ch_names=list("abcd")))
    assert raw.get_channel_types() == ["mag", "grad", "eeg", "misc"]
    np.testing.assert_allclose(raw.get_data(), samples * np.array([[1e-15], [1e-13], [1e-6], [2.0]]), rtol=1e-12)


def test_montage_gives_names_and_positions():
    montage = mne.channels.make_standard_montage("biosemi16")
    raw = read(make(np.ones((16, 200)), montage="biosemi16"))
    assert raw.ch_names == montage.ch_names
    assert np.isfinite(positions_of(raw)).all()
    assert len(np.unique(positions_of(raw), axis=0)) == 16


def test_positions_of_both_kinds_of_sensor_and_nan_where_unknown(samples):
    places = np.random.default_rng(1).uniform(-0.1, 0.1, (4, 3))
    places[2] = np.nan
    for kind in ("eeg", "mag"):
        found = positions_of(read(make(samples, positions=places, ch_types=kind)))
        np.testing.assert_allclose(found[[0, 1, 3]], places[[0, 1, 3]], atol=1e-6)
        assert np.isnan(found[2]).all()


@pytest.mark.parametrize("suffix", [".mat", ".npz"])
def test_files_with_further_variables_as_channels(tmp_path, samples, suffix):
    mastoids = np.arange(1280.0).reshape(640, 2)
    variables = {"eeg": samples.T, "mast": mastoids}
    if suffix == ".mat":
        scipy.io.savemat(tmp_path / "s.mat", variables)
    else:
        np.savez(tmp_path / "s.npz", **variables)
    for key in ("eeg", None):  # None: the only one besides extra
        dataset = make(f"s{suffix}", root=tmp_path, key=key, time_axis=0, extra={"mast": ("M1", "M2")}, montage=None)
        raw = read(dataset)
        assert raw.ch_names[-3:] == ["EEG004", "M1", "M2"]
        np.testing.assert_allclose(raw.get_data(), np.concatenate([samples, mastoids.T]), rtol=1e-12)
    assert dataset.recordings()[0].path == f"s{suffix}"


def write_hdf5_mat(path, array, cells):
    """A v7.3 file as MATLAB writes it: HDF5 with axes reversed behind a header of 512 bytes."""
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w", userblock_size=512) as file:
        file.create_dataset("eeg", data=array.T).attrs["MATLAB_class"] = np.bytes_("double")
        boxes = [file.create_dataset(f"#refs#/{k}", data=cell.T) for k, cell in enumerate(cells)]
        for box in boxes:
            box.attrs["MATLAB_class"] = np.bytes_("double")
        references = file.create_dataset("stim", (len(cells), 1), dtype=h5py.ref_dtype)
        references[:, 0] = [box.ref for box in boxes]
        references.attrs["MATLAB_class"] = np.bytes_("cell")
    header = b"MATLAB 7.3 MAT-file, Platform: GLNXA64, HDF5 schema 1.00 .".ljust(116) + b" " * 8 + bytes([0, 2]) + b"IM"
    with open(path, "r+b") as file:
        file.write(header)


def test_matlab_v73_reads_like_v5(tmp_path, samples):
    cells = [np.full((640, 1), float(k)) for k in range(3)]
    write_hdf5_mat(tmp_path / "s.mat", samples.T, cells)
    stimuli = {"a": ArrayStimulus("s.mat", 128.0, key="stim", cell=2)}
    dataset = make("s.mat", root=tmp_path, key="eeg", time_axis=0, stimuli=stimuli)
    np.testing.assert_allclose(read(dataset).get_data(), samples)
    data, sfreq = dataset.read_stimulus("a")
    assert (data.shape, sfreq, data.min()) == ((1, 640), 128.0, 2.0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"signal": np.ones((640, 4))}, r"shape \(640, 4\).*time_axis=0"),
        ({"signal": np.ones((4, 640)), "time_axis": 0}, r"\(n_times, n_channels\).*time_axis=1"),
        ({"signal": np.ones((640, 4)), "ch_names": list("abcd")}, r"got 4 channel names.*\(640, 4\); pass time_axis=0"),
        ({"ch_names": list("abc")}, "got 3 channel names.*correct the names"),
        ({"signal": np.ones(640)}, r"two-dimensional.*\(640,\)"),
        ({"signal": np.ones((4, 640)) * 1j}, "real numbers, got complex"),
        ({"sfreq": 0}, "sfreq must be a positive"),
        ({"sfreq": float("nan")}, "sfreq must be a positive"),
        ({"time_axis": 2}, "time_axis must be 0 or 1"),
        ({"ch_types": "brain"}, "channel types must be among.*got brain"),
        ({"montage": "biosemi16"}, "16 positions, the signal 4 channels"),
        (
            {"montage": mne.channels.make_standard_montage("biosemi16")},
            r"montage is a name.*got a DigMontage; give its places",
        ),
        ({"montage": "mycap"}, "montage must be one of.*'mycap'"),
        ({"montage": "biosemi16", "positions": np.zeros((4, 3))}, "both a montage and positions"),
        ({"key": "eeg"}, "name variables of a file"),
        ({"extra": {"mast": ["M1"]}}, "name variables of a file"),
        ({"signal": "s.csv"}, "a file that ends in .mat, .npz, .npy, got s.csv. Read it, give the array"),
        (
            {"signal": "s.edf"},
            r"got the file s\.edf, expected an array of samples or a \.mat.*read_raw.*add_dataset\.md",
        ),
        ({"signal": "sub/s_raw.FIF.gz"}, r"got the file sub/s_raw\.FIF\.gz, .*add_dataset\.md"),
        ({"raw": Path("s_raw.fif")}, r"recording 0: got the file s_raw\.fif, .*'A Raw or a \.fif file'"),
        ({"signal": np.ones((4, 640)).tolist()}, "got list; .*give a numpy array"),
        ({"signal": np.ones((9, 4, 640))}, r"shape \(9, 4, 640\); give one continuous recording"),
        ({"subject": None}, "recording 0: subject is a label such as '01', got None"),
        ({"subject": "a/b"}, "recording 0: The subject of a recording must not contain '/'"),
        ({"fs": 128}, "unknown fields fs; the fields are subject"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else None,
)
def test_mistakes_found_without_reading(samples, fields, message):
    with pytest.raises(ValueError, match=f"arrays.*{message}"):
        make(**{"signal": samples, **fields})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"unit": "microvolt"}, "unit must be one of V, mV"),
        ({"unit": 0.0}, "factor must be finite and not 0"),
        ({"unit": ["uV", "uV"]}, "expected one unit or 4"),
        ({"ch_types": ["eeg"]}, "expected one ch_types or 4"),
        ({"ch_names": list("aabc")}, "unique, got a more"),
        ({"ch_names": ["Fp1", "Oz", "HEOG", "Pz"], "montage": "biosemi16"}, "1 EEG channels have no position.*HEOG"),
        ({"ch_names": ["Fp1", "Oz", "Cz", "Pz"], "montage": "biosemi16", "ch_types": "mag"}, "there are none; give positions"),
        ({"positions": {"EEG001": (0, 0, 0.1)}}, r"positions are an array \(4, 3\).*got a dict"),
        ({"positions": np.zeros((3, 3))}, r"positions of shape \(4, 3\), got \(3, 3\)"),
        ({"positions": np.full((4, 3), 80.0)}, "in metres.*divide millimetres"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else None,
)
def test_mistakes_found_on_reading(samples, fields, message):
    with pytest.raises(ValueError, match=f"arrays/sub-01.*{message}"):
        read(make(samples, **fields))


def test_what_mne_reads_is_refused_with_the_way_to_go(samples):
    """Also where the user takes other fields to follow from it."""
    info = mne.create_info(4, 128.0, "eeg")
    raw = mne.io.RawArray(samples, info, verbose="error")
    for fields in ({"signal": raw}, {"raw": raw}):
        with pytest.raises(ValueError, match=r"arrays: recording 0: got an mne RawArray, .*read_raw.*signal=raw\.get_data\(\), sfreq="):
            ArraysDataset(recordings=[{"subject": "01", "events": [], **fields}])
    with pytest.raises(ValueError, match="got an mne RawArray"):
        ArraysDataset(recordings=[ArrayRecording("01", raw, 128.0, [])])
    epochs = mne.EpochsArray(np.stack([samples, samples]), info, verbose="error")
    with pytest.raises(ValueError, match=r"got an mne EpochsArray, .*SpeechDecoder\.fit takes Epochs"):
        make(epochs)
    # What the message says works.
    fields = {"signal": raw.get_data(), "sfreq": raw.info["sfreq"], "ch_names": raw.ch_names, "ch_types": raw.get_channel_types()}
    assert read(make(**fields)).ch_names == raw.ch_names


def test_recordings_that_are_no_list_and_fields_that_are_not_there(samples):
    with pytest.raises(ValueError, match=r"recordings is a list with one dict for each, got a dict; put it into \[ \]"):
        ArraysDataset(recordings={"subject": "01", "signal": samples, "sfreq": 128.0, "events": []})
    with pytest.raises(ValueError, match="recording 1: sfreq, events must be given, got subject, signal; the fields are"):
        ArraysDataset(recordings=[ArrayRecording("00", samples, 128, []), {"subject": "01", "signal": samples}])


def test_labels_as_bids_writes_them(samples):
    dataset = make(samples, subject="sub-01", session="ses-a", run="run-2")
    assert dataset.recordings()[0].uid == "arrays/sub-01/ses-a/run-2"
    with pytest.raises(ValueError, match="arrays/sub-01: two recordings"):
        ArraysDataset(recordings=[ArrayRecording(subject, samples, 128.0, []) for subject in ("01", "sub-01")])


@pytest.mark.parametrize(
    ("kind", "factor", "said"),
    [
        ("eeg", 1.0, "within 14 V, which is no eeg.*unit='uV'"),
        ("eeg", 1e-12, "V, which is no eeg"),
        ("mag", 1e2, "T, which is no mag.*unit='fT'"),
        ("grad", 1.0, "T/m, which is no grad.*unit='fT/cm'"),
    ],
)
def test_samples_that_cannot_be_in_volt_or_tesla_are_warned_of(samples, kind, factor, said):
    samples[0, :9] = np.nan
    dataset = make(factor * samples, unit=None, ch_types=kind)
    with pytest.warns(UserWarning, match=f"arrays/sub-01: no unit is said, .*{said}"):
        read(dataset)
    read(dataset)  # warned of once, and kept for the report
    assert [note.partition(" is said")[0] for note in dataset.notes] == ["arrays/sub-01: no unit"]
    if factor == 1e-12:
        with pytest.warns(UserWarning, match="unit='uV' is said"):
            read(make(1e6 * factor * samples, unit="uV", ch_types=kind))  # which is in volt
    for unit in ("V", 1.0, ["V"] * 4):
        read(make(factor * samples, unit=unit, ch_types=kind))  # who says it knows it


def test_samples_in_volt_and_tesla_need_no_unit(samples):
    drift = np.linspace(0, 0.02, 640)  # 20 mV, as of an electrode that dries
    for kind, size in (("eeg", 1e-6), ("mag", 1e-13), ("grad", 1e-12), ("misc", 1.0)):
        raw = read(make(size * samples / 10 + (drift if kind == "eeg" else 0), unit=None, ch_types=kind))
        assert raw.get_channel_types() == [kind] * 4
    read(make(np.zeros((4, 640)), unit=None))  # flat: preprocess says it


def test_two_recordings_with_one_uid_are_refused(samples):
    one = {"subject": "01", "signal": samples, "sfreq": 128.0, "events": []}
    with pytest.raises(ValueError, match="arrays/sub-01: two recordings"):
        ArraysDataset(recordings=[one, one])


def test_files_that_do_not_hold_what_is_said(tmp_path, samples):
    np.savez(tmp_path / "two.npz", eeg=samples, other=samples)
    np.savez(tmp_path / "short.npz", eeg=samples, mast=samples[:2, :600])
    np.save(tmp_path / "objects.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    (tmp_path / "torn.mat").write_bytes(b"MATLAB 5.0 MAT-file torn")
    with pytest.raises(ValueError, match=r"2 two-dimensional variables .eeg, other.; name one in key"):
        read(make("two.npz", root=tmp_path))
    with pytest.raises(ValueError, match="no variable 'EEG', it has eeg, other"):
        read(make("two.npz", root=tmp_path, key="EEG"))
    with pytest.raises(ValueError, match="mast has 600 samples, expected the 640"):
        read(make("short.npz", root=tmp_path, key="eeg", extra={"mast": ("M1", "M2")}))
    for name in ("objects.npy", "torn.mat"):
        with pytest.raises(RuntimeError, match=f"arrays/sub-01.*{name} cannot be read"):
            read(make(name, root=tmp_path))


def test_missing_files_say_where_they_were_expected(tmp_path, samples):
    dataset = make("nowhere.npz", root=tmp_path, events="events.csv", stimuli={"b": "b.wav"})
    recording = dataset.recordings()[0]
    for call in (dataset.read_raw, dataset.read_events, dataset.fingerprint):
        with pytest.raises(FileNotFoundError, match=r"arrays/sub-01: the file .* is missing; paths start from root="):
            call(recording)
    for name in ("b", "a.wav"):
        with pytest.raises(FileNotFoundError, match=f"{name}.*missing"):
            dataset.read_stimulus(name)
    with pytest.raises(FileNotFoundError, match=r"stimulus 'c' is not among those given .*root="):
        make(samples).read_stimulus("c")


@pytest.mark.parametrize("suffix", ["csv", "tsv"])
def test_events_from_a_table_keep_words_that_look_like_nothing(tmp_path, samples, suffix):
    rows = [SOUND, WORD | {"text": "null"}, WORD | {"onset": 3.0, "text": "NA"}]
    pd.DataFrame(rows).to_csv(tmp_path / f"e.{suffix}", sep="," if suffix == "csv" else "\t", index=False)
    from_file = make(samples, root=tmp_path, events=f"e.{suffix}")
    table = from_file.read_events(from_file.recordings()[0])
    assert table["text"].tolist() == ["", "null", "NA"]
    assert table["audio_onset"].tolist() == [0.0, 1.5, 2.0]
    from_frame = make(samples, events=pd.DataFrame(rows))
    pd.testing.assert_frame_equal(from_frame.read_events(from_frame.recordings()[0]), table)


@pytest.mark.parametrize("events", [None, 3, mne.Annotations([1.0], [0.5], ["tea"]), np.zeros((3, 3)), ["tea"]], ids=type)
def test_events_of_another_form_are_named(samples, events):
    dataset = make(samples, events=events)
    with pytest.raises(ValueError, match=r"arrays/sub-01: events are a DataFrame, a list of dicts .*kind, onset.*got .*; write a row for"):
        dataset.read_events(dataset.recordings()[0])


def test_a_fault_of_a_table_names_its_file(tmp_path, samples):
    pd.DataFrame([SOUND, WORD]).drop(columns="onset").to_csv(tmp_path / "e.csv")
    dataset = make(samples, root=tmp_path, events="e.csv")
    with pytest.raises(ValueError, match=r"arrays/sub-01 \(e\.csv\): .*missing \['onset'\]"):
        dataset.read_events(dataset.recordings()[0])


@pytest.mark.parametrize("suffix", ["csv", "tsv"])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("kind,onset,text\nword,1,caf\xe9\n".encode("latin-1"), r"is not in UTF-8 \(.*0xe9.*\)\. Save it as UTF-8"),
        (b"", "is empty. Write a first line with the columns kind, onset"),
        (b'kind,onset,text\nword,1,"tea\n', "is no table .*Correct that line, or quote the text in it"),
    ],
    ids=["latin-1", "empty", "torn"],
)
def test_events_that_are_no_table_are_named(tmp_path, samples, suffix, content, said):
    (tmp_path / f"e.{suffix}").write_bytes(content if suffix == "csv" else content.replace(b",", b"\t"))
    dataset = make(samples, root=tmp_path, events=f"e.{suffix}")
    with pytest.raises(RuntimeError, match=rf"arrays/sub-01 \(e\.{suffix}\): .*e\.{suffix} {said}"):
        dataset.read_events(dataset.recordings()[0])


def test_a_byte_order_mark_is_no_part_of_a_column(tmp_path, samples):
    pd.DataFrame([SOUND, WORD]).to_csv(tmp_path / "e.csv", index=False, encoding="utf-8-sig")
    dataset = make(samples, root=tmp_path, events="e.csv")
    assert dataset.read_events(dataset.recordings()[0])["kind"].tolist() == ["sound", "word"]


def test_a_folder_in_a_files_place(tmp_path, samples):
    (tmp_path / "s.npz").mkdir()
    dataset = make("s.npz", root=tmp_path, events="s.npz")
    for call in (dataset.read_raw, dataset.read_events, dataset.fingerprint):
        with pytest.raises(ValueError, match=r"arrays/sub-01: .*s\.npz is a folder, expected a file; give a recording for each"):
            call(dataset.recordings()[0])


def test_sounds_that_cannot_be_read(tmp_path, samples):
    (tmp_path / "torn.wav").write_bytes(b"RIFF")
    soundfile.write(tmp_path / "story.wav", np.zeros(100), 8000)
    dataset = make(samples, root=tmp_path, stimuli={"b": "torn.wav"})
    for name in ("b", "torn.wav"):
        with pytest.raises(RuntimeError, match=rf"stimulus '{name}': .*torn\.wav \(4 bytes\) cannot be read as sound .*Fetch it again"):
            dataset.read_stimulus(name)
    with pytest.raises(
        FileNotFoundError, match=r"'story' is missing.* There is story\.wav: events name a sound by its whole.* stimuli=\{'story'"
    ):
        dataset.stimulus_fingerprint("story")


def test_names_in_any_script(tmp_path, samples):
    root = tmp_path / "données 数据"
    root.mkdir()
    np.savez(root / "sujet é.npz", eeg=samples)
    soundfile.write(root / "histoire ñ.wav", np.zeros(800), 8000)
    rows = [SOUND | {"audio": "histoire ñ.wav"}, WORD | {"text": "thé"}]
    pd.DataFrame(rows).to_csv(root / "é.csv", index=False)
    dataset = make("sujet é.npz", root=root, key="eeg", events="é.csv", subject="é")
    assert read(dataset).n_times == 640
    assert dataset.read_events(dataset.recordings()[0])["text"].tolist() == ["", "thé"]
    assert dataset.read_stimulus("histoire ñ.wav")[0].shape == (1, 800)


def test_events_beyond_the_end_are_kept_and_bad_ones_refused(samples):
    late = make(samples, events=[SOUND | {"onset": 500.0}])
    assert late.read_events(late.recordings()[0])["onset"].tolist() == [500.0]
    bad = make(samples, events=[SOUND | {"duration": -1.0}])
    with pytest.raises(ValueError, match="arrays/sub-01: 1 events have a negative duration"):
        bad.read_events(bad.recordings()[0])


def test_stimuli_of_all_kinds(tmp_path, samples):
    sound = np.sin(np.arange(1600) / 5).astype(np.float32) / 2
    soundfile.write(tmp_path / "tone.wav", np.stack([sound, -sound], axis=1), 8000, subtype="FLOAT")
    cells = np.empty((1, 3), dtype=object)
    cells[0] = [np.full((640, 1), float(k)) for k in range(3)]
    scipy.io.savemat(tmp_path / "cells.mat", {"stim1": cells})
    track = np.random.default_rng(0).normal(size=(200, 5))
    stimuli = {
        "array": (sound, 8000),
        "track": ArrayStimulus(track, 64.0, time_axis=0),
        "cell": {"data": "cells.mat", "sfreq": 128, "key": "stim1", "cell": 1},
        "file": "tone.wav",
    }
    dataset = make(samples, root=tmp_path, stimuli=stimuli)
    for name, expected, rate in (
        ("array", sound[None], 8000.0),
        ("track", track.T.astype(np.float32), 64.0),
        ("cell", np.ones((1, 640)), 128.0),
        ("file", np.stack([sound, -sound]), 8000.0),
        ("tone.wav", np.stack([sound, -sound]), 8000.0),  # not among the stimuli: a file below root
    ):
        data, sfreq = dataset.read_stimulus(name)
        np.testing.assert_array_equal(data, expected)
        assert (data.dtype, sfreq) == (np.float32, rate)
    prints = {name: dataset.stimulus_fingerprint(name) for name in (*stimuli, "tone.wav")}
    assert len(set(prints.values())) == 5
    assert prints == {name: make(samples, root=tmp_path, stimuli=stimuli).stimulus_fingerprint(name) for name in prints}


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (np.ones(100), r"without its rate; give \(array, sfreq\)"),
        ((np.ones(100), -1), "sfreq must be a positive"),
        ((np.ones((100, 5)), 64.0), r"100 rows of 5 samples.*time_axis=0"),
        ((np.array([1.0, np.nan]), 64.0), "1 samples are not finite"),
        ((np.zeros(0), 64.0), r"got the shape \(1, 0\)"),
        ((np.array([["a"]]), 64.0), "real numbers"),
        ({"data": "a.wav", "sfreq": 8000}, "says its own rate"),
        ({"data": np.ones(100), "sfreq": 64.0, "cell": 0}, "no cell array"),
        ({"data": np.ones(100), "rate": 64.0}, "unknown fields rate"),
        ("a.txt", "expected a file that ends in"),
    ],
)
def test_stimulus_mistakes(samples, item, message):
    with pytest.raises(ValueError, match=f"stimulus 'a'.*{message}"):
        make(samples, stimuli={"a": item})


def test_cell_outside_the_array(tmp_path, samples):
    cells = np.empty((1, 2), dtype=object)
    cells[0] = [np.ones((9, 1)), np.ones((9, 1))]
    scipy.io.savemat(tmp_path / "cells.mat", {"stim1": cells})
    for cell in (2, None):
        dataset = make(samples, root=tmp_path, stimuli={"a": ArrayStimulus("cells.mat", 64.0, key="stim1", cell=cell)})
        with pytest.raises(ValueError, match=f"between 0 and 1.*got cell={cell}"):
            dataset.read_stimulus("a")


def test_fingerprint_follows_content_and_description(tmp_path, samples):
    np.save(tmp_path / "s.npy", samples)

    def fingerprint(signal=samples, **fields):
        dataset = make(signal, root=tmp_path, **fields)
        return dataset.fingerprint(dataset.recordings()[0])

    assert fingerprint() == fingerprint(samples.copy())
    assert fingerprint("s.npy") == fingerprint("s.npy")
    changed = samples.copy()
    changed[0, 0] += 1
    places = np.zeros((4, 3))
    variants = [{}, {"signal": changed}, {"sfreq": 127.0}, {"unit": "uV"}, {"ch_types": "mag"}, {"ch_names": list("abcd")}]
    variants += [{"positions": places}, {"positions": places + 0.01}, {"signal": "s.npy"}]
    assert len({fingerprint(**variant) for variant in variants}) == len(variants)
    before = fingerprint("s.npy")
    np.save(tmp_path / "s.npy", np.concatenate([samples, samples], axis=1))
    assert fingerprint("s.npy") != before


@pytest.mark.data
def test_real_cocktail_eeg():
    root = SHARED / "data" / "cocktail_eeg"
    if not root.is_dir():
        pytest.skip(f"no cocktail EEG at {root}; set BRAINSPEECH_SHARED")
    order = scipy.io.loadmat(root / "competing_speaker_order.mat")["blk1_M_Order"].ravel()
    stimuli, recordings = {}, []
    for trial in range(1, 6):
        stimuli[f"attended-{trial}"] = ArrayStimulus("F_env.mat", 128, key="stim1", cell=trial - 1)
        stimuli[f"ignored-{trial}"] = ArrayStimulus("M_env.mat", 128, key="stim1", cell=int(order[trial - 1]) - 1)
        heard = {"kind": "sound", "onset": 0.0, "duration": 60.0, "audio": f"attended-{trial}"}
        file = {"signal": f"1_{trial}.mat", "key": "eeg", "extra": {"mast": ("M1", "M2")}, "time_axis": 0, "sfreq": 128, "unit": "uV"}
        recordings.append({"subject": "1", "run": str(trial), "events": [heard], "montage": "biosemi128", **file})
    dataset = ArraysDataset(root, name="cocktail_eeg", recordings=recordings, stimuli=stimuli)
    assert len(dataset.recordings()) == 5
    for trial, recording in enumerate(dataset.recordings(), start=1):
        raw = dataset.read_raw(recording)
        assert len(raw.ch_names) == 130
        assert raw.n_times == 7680
        assert np.isfinite(positions_of(raw)[:128]).all()
        assert np.isnan(positions_of(raw)[128:]).all()
        assert 1e-6 < raw.get_data().std() < 100e-6  # volt
        assert dataset.read_events(recording)["audio"].tolist() == [f"attended-{trial}"]
        attended, _ = dataset.read_stimulus(f"attended-{trial}")
        ignored, sfreq = dataset.read_stimulus(f"ignored-{trial}")
        assert attended.shape == ignored.shape == (1, 7680)
        assert sfreq == 128.0
        assert abs(np.corrcoef(attended[0], ignored[0])[0, 1]) < 0.2  # two talkers
    assert len({dataset.fingerprint(r) for r in dataset.recordings()}) == 5
