"""Preprocessing on the real recordings: every vendor format that the datasets use."""

from __future__ import annotations

import shutil
import warnings
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import mne
import numpy as np
import pytest

from brainspeech.preprocess import PreprocessConfig, preprocess

pytestmark = pytest.mark.data


@dataclass(frozen=True)
class Expected:
    """What a file holds as MNE reads it, and what becomes of it."""

    types: dict[str, int]  # brain channels and references
    sfreq: float
    seconds: float
    known: dict[str, int]  # channels kept with a known position, by what is asked for
    dropped: dict[str, dict[str, int]] = field(default_factory=dict)  # by what is asked for


def _kit(folder: Path, stem: str, **options) -> mne.io.BaseRaw:
    return mne.io.read_raw_kit(folder / "kit" / stem, **{name: folder / "kit" / path for name, path in options.items()}, verbose="error")


def _eeglab(folder: Path, name: str) -> mne.io.BaseRaw:
    with warnings.catch_warnings():
        # pymatreader says this of any MATLAB object in a file; the fields that MNE reads are plain arrays.
        warnings.filterwarnings("ignore", message="Complex objects .* are not supported", category=UserWarning)
        # The BioSemi inputs that are no electrodes: what preprocess has to leave out.
        warnings.filterwarnings("ignore", message="Unknown types found, setting as type EEG", category=RuntimeWarning)
        return mne.io.read_raw_eeglab(folder / "eeglab" / name)


def _fieldtrip(folder: Path, system: str, version: str) -> mne.io.BaseRaw:
    with warnings.catch_warnings():
        # These files come without the original info, which is what MNE warns of when it is told so.
        warnings.filterwarnings("ignore", message="Importing FieldTrip data without an info dict", category=RuntimeWarning)
        warnings.filterwarnings("ignore", message="Cannot guess the correct type of channel .* MISC", category=RuntimeWarning)
        warnings.filterwarnings("ignore", message="Complex objects .* are not supported", category=UserWarning)
        return mne.io.read_raw_fieldtrip(folder / "fieldtrip" / system / f"raw_{version}.mat", info=None)


def _bids(folder: Path, copy: Path) -> mne.io.BaseRaw:
    """Read tiny_bids through mne-bids, from a copy in which one of its two electrode files is chosen."""
    import mne_bids

    for source in (folder / "tiny_bids").rglob("*"):
        if source.is_file() and source.name not in ("sub-01_ses-eeg_electrodes.tsv", "sub-01_ses-eeg_coordsystem.json"):
            target = copy / source.relative_to(folder / "tiny_bids")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
    path = mne_bids.BIDSPath(root=copy, subject="01", session="eeg", task="rest", datatype="eeg")
    return mne_bids.read_raw_bids(path, verbose="error")


OPEN = {
    "kit": lambda folder, tmp: _kit(folder, "test.sqd", mrk="test_mrk.sqd", elp="test_elp.txt", hsp="test_hsp.txt"),
    "kit-125": lambda folder, tmp: _kit(folder, "MQKIT_125_2sec.con", mrk="MQKIT_125.mrk", elp="MQKIT_125.elp", hsp="MQKIT_125.hsp"),
    "kit-as": lambda folder, tmp: _kit(folder, "test_as-raw.con"),
    "ctf-275": lambda folder, tmp: mne.io.read_raw_ctf(folder / "ctf" / "testdata_ctf_short_discontinuous.ds"),
    "ctf-151": lambda folder, tmp: mne.io.read_raw_ctf(folder / "ctf" / "somMDYO-18av.ds"),
    "biosemi": lambda folder, tmp: mne.io.read_raw_bdf(folder / "biosemi" / "test.bdf"),
    "biosemi-stim": lambda folder, tmp: mne.io.read_raw_bdf(folder / "biosemi" / "test_bdf_stim_channel.bdf"),
    "brainvision": lambda folder, tmp: mne.io.read_raw_brainvision(folder / "brainvision" / "test.vhdr"),
    "eeglab": lambda folder, tmp: _eeglab(folder, "test_raw.set"),
    "eeglab-hdf5": lambda folder, tmp: _eeglab(folder, "test_raw_hdf5.set"),
    "triux": lambda folder, tmp: mne.io.read_raw_fif(folder / "megin" / "triux_bmlhus_erm_raw_sss.fif"),
    "vectorview": lambda folder, tmp: mne.io.read_raw_fif(folder / "megin" / "sample_audvis_trunc_raw_sss.fif"),
    "bids": _bids,
    "bids-plain": lambda folder, tmp: mne.io.read_raw_brainvision(
        folder / "tiny_bids" / "sub-01" / "ses-eeg" / "eeg" / "sub-01_ses-eeg_task-rest_eeg.vhdr"
    ),
    "fieldtrip-ctf-v7": lambda folder, tmp: _fieldtrip(folder, "ctf", "v7"),
    "fieldtrip-ctf-v73": lambda folder, tmp: _fieldtrip(folder, "ctf", "v73"),
    "fieldtrip-kit-v7": lambda folder, tmp: _fieldtrip(folder, "kit", "v7"),
    "fieldtrip-kit-v73": lambda folder, tmp: _fieldtrip(folder, "kit", "v73"),
}

FIELDTRIP_CTF = Expected({"mag": 295}, 1200.0, 0.15, {"meg": 271}, {"meg": {"not on the brain": 24}})
FIELDTRIP_KIT = Expected({"mag": 154}, 1000.0, 0.2, {"meg": 154})
EXPECTED = {
    "kit": Expected({"mag": 157, "ref_meg": 3}, 1000.0, 2.0, {"meg": 157}),
    "kit-125": Expected({"mag": 125, "ref_meg": 3}, 1000.0, 2.0, {"meg": 125}),
    "kit-as": Expected({"mag": 157, "ref_meg": 3, "eeg": 32}, 1000.0, 0.2, {"meg": 157, "eeg": 0}),
    "ctf-275": Expected({"mag": 273, "ref_meg": 28, "eeg": 8}, 1200.0, 2.0, {"meg": 273, "eeg": 7}, {"eeg": {"flat": 1}}),
    "ctf-151": Expected({"mag": 151, "ref_meg": 29}, 1250.0, 0.5, {"meg": 144}, {"meg": {"marked bad": 7}}),
    "biosemi": Expected({"eeg": 72}, 2048.0, 1.0, {"eeg": 0}, {"eeg": {"not on the brain": 3}}),  # REOG, LEOG, IEOG
    "biosemi-stim": Expected({"eeg": 3}, 500.0, 10.0, {"eeg": 0}),
    "brainvision": Expected({"eeg": 26}, 1000.0, 7.9, {"eeg": 0}),
    "eeglab": Expected({"eeg": 32}, 128.0, 238.3, {"eeg": 0}),
    # The seven are the empty inputs GSR1, GSR2, Erg1, Erg2, Resp, Plet, Temp; EXG1 to 8 have no position.
    "eeglab-hdf5": Expected({"eeg": 271}, 1024.0, 0.25, {"eeg": 256}, {"eeg": {"not on the brain": 7}}),
    "triux": Expected({"mag": 102, "grad": 204}, 1000.0, 1.0, {"meg": 306, "mag": 102, "grad": 204}),
    "vectorview": Expected({"mag": 102, "grad": 204, "eeg": 60}, 300.3074951171875, 1.0, {"meg": 306, "mag": 102, "eeg": 60}),
    "bids": Expected({"eeg": 64}, 5000.0, 2.0, {"eeg": 63}, {"eeg": {"marked bad": 1}}),  # so says channels.tsv
    "bids-plain": Expected({"eeg": 67}, 5000.0, 2.0, {"eeg": 0}, {"eeg": {"not on the brain": 3}}),  # ECG, HEOG, VEOG
    "fieldtrip-ctf-v7": FIELDTRIP_CTF,
    "fieldtrip-ctf-v73": FIELDTRIP_CTF,
    "fieldtrip-kit-v7": FIELDTRIP_KIT,
    "fieldtrip-kit-v73": FIELDTRIP_KIT,
}


@pytest.mark.parametrize("name", EXPECTED)
def test_a_recording_becomes_a_signal(shared, tmp_path, name):
    raw, expected = OPEN[name](shared / "data" / "recordings", tmp_path), EXPECTED[name]
    types = Counter(raw.get_channel_types())
    assert {kind: n for kind, n in types.items() if kind in ("mag", "grad", "ref_meg", "eeg")} == expected.types
    assert raw.info["sfreq"] == expected.sfreq
    assert raw.n_times / raw.info["sfreq"] == pytest.approx(expected.seconds, abs=0.02)

    for channels, known in expected.known.items():
        signal = preprocess(raw, PreprocessConfig(channels=channels), uid=name)
        kinds = ("mag", "grad") if channels == "meg" else (channels,)
        assert signal.dropped == expected.dropped.get(channels, {})
        assert len(signal.ch_names) == sum(types[kind] for kind in kinds) - sum(signal.dropped.values())
        assert set(signal.ch_types) <= set(kinds)
        assert signal.data.shape[1] == round(raw.n_times / raw.info["sfreq"] * 120)
        assert signal.data.dtype == np.float32
        assert np.isfinite(signal.data).all()
        assert (np.ptp(signal.data, axis=1) > 0).all()

        placed = np.isfinite(signal.positions)
        assert (placed[:, 0] == placed[:, 1]).all()
        assert placed[:, 0].sum() == known
        assert ((signal.positions >= 0) & (signal.positions <= 1))[placed].all()
        # Two planar gradiometers and a magnetometer share a place in 3-D; the Vectorview layout draws them side by side.
        assert len(np.unique(signal.positions[placed[:, 0]], axis=0)) == known


@pytest.mark.parametrize("name", [name for name in EXPECTED if name.startswith(("kit", "ctf", "triux", "vectorview", "fieldtrip-kit"))])
def test_sensors_are_placed_where_the_helmet_has_them(shared, tmp_path, name):
    # In these files x points to the right ear and y to the nose.
    raw = OPEN[name](shared / "data" / "recordings", tmp_path)
    signal = preprocess(raw, PreprocessConfig(channels="meg"), uid=name)
    points = np.array([raw.info["chs"][raw.ch_names.index(channel)]["loc"][:3] for channel in signal.ch_names])
    for axis in (0, 1):
        assert np.corrcoef(signal.positions[:, axis], points[:, axis])[0, 1] > 0.9


def test_an_older_ctf_helmet_is_not_drawn_as_the_newer_one(shared, tmp_path):
    # MNE answers with the layout of 275 sensors, which has 144 of these 151 names, at other places.
    raw = OPEN["ctf-151"](shared / "data" / "recordings", tmp_path)
    assert mne.find_layout(raw.info).kind == "CTF-275"
    raw.info["bads"] = []
    signal = preprocess(raw, PreprocessConfig())
    layout = mne.channels.read_layout("CTF151")
    places = {name.split("-")[0]: place[:2] for name, place in zip(layout.names, layout.pos, strict=True)}
    own = np.array([places[name.split("-")[0]] for name in signal.ch_names])
    own = (own - own.min(axis=0)) / np.ptp(own, axis=0)
    assert np.isfinite(signal.positions).all()
    assert np.linalg.norm(signal.positions - own, axis=1).max() < 0.1  # 0.2 with the other layout


def test_a_montage_places_what_the_file_does_not(shared, tmp_path):
    raw = OPEN["brainvision"](shared / "data" / "recordings", tmp_path)
    positions = preprocess(raw, PreprocessConfig(positions="biosemi64")).positions
    names = [name.lower() for name in raw.ch_names[:26]]
    assert np.isfinite(positions).all()
    left, right = positions[names.index("c3")], positions[names.index("c4")]
    assert left[0] < 0.5 < right[0]
    assert left[1] == pytest.approx(right[1], abs=0.02)


def test_the_cocktail_eeg_can_be_placed_and_referenced_to_its_mastoids(shared):
    from scipy.io import loadmat

    trial = loadmat(shared / "data" / "cocktail_eeg" / "1_1.mat")
    names = mne.channels.make_standard_montage("biosemi128").ch_names
    data = np.concatenate([trial["eeg"], trial["mast"]], axis=1).T * 1e-6
    raw = mne.io.RawArray(data, mne.create_info([*names, "M1", "M2"], 128.0, "eeg"), verbose="error")
    config = PreprocessConfig(sfreq=64.0, highpass=1.0, lowpass=8.0, reference=("M1", "M2"), positions="biosemi128")
    signal = preprocess(raw, config)
    assert signal.data.shape == (128, 3840)
    assert signal.dropped == {"used as reference": 2}
    assert np.isfinite(signal.positions).all()
    assert np.isfinite(signal.data).all()
    assert 1.0 < signal.filter_half_length < 2.5
