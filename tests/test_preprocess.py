"""From a raw recording to a Signal."""

from __future__ import annotations

import dataclasses
import json

import mne
import numpy as np
import pytest

from brainspeech import preprocess as room
from brainspeech.cache import file_identity
from brainspeech.preprocess import PreprocessConfig, load_signal, preprocess
from brainspeech.records import Recording
from brainspeech.timing import resampled_length

EEG = ["Fp1", "Fp2", "F3", "F4", "C3", "C4", "P3", "P4"]
PLAIN = PreprocessConfig()


def _raw(data, sfreq=1000.0, names=None, types="eeg"):
    names = names or [*EEG, *[f"E{n}" for n in range(len(data) - len(EEG))]][: len(data)]
    return mne.io.RawArray(np.array(data, dtype=np.float64), mne.create_info(names, sfreq, types), verbose="error")


def _noise(n_channels=8, n_times=4000, scale=1e-5, seed=0):
    return np.random.default_rng(seed).standard_normal((n_channels, n_times)) * scale


def _sine(frequency, sfreq, seconds, phase=0.3):
    return np.sin(2 * np.pi * frequency * np.arange(round(seconds * sfreq)) / sfreq + phase)


# ---------------------------------------------------------------------------------------------------------------------- resampling


@pytest.mark.parametrize("sfreq", [1000.0, 300.3074951171875, 128.0, 512.0, 5000.0, 100.0, 250.001, 120.004, 120.0])
@pytest.mark.parametrize("frequency", [1.0, 10.0, 30.0])
def test_a_sine_keeps_its_amplitude_and_its_time(sfreq, frequency):
    raw = _raw([1e-6 * _sine(frequency, sfreq, 20.0)], sfreq)
    signal = preprocess(raw, PLAIN)
    n_times = resampled_length(raw.n_times, sfreq, 120.0)
    assert signal.data.shape == (1, n_times)
    assert signal.sfreq == 120.0
    middle = slice(60, n_times - 60)  # away from the ends
    times = np.arange(n_times)[middle] / 120.0
    # Fit amplitude and phase by least squares, sine, cosine and constant.
    design = np.c_[np.sin(2 * np.pi * frequency * times), np.cos(2 * np.pi * frequency * times), np.ones_like(times)]
    fit = np.linalg.lstsq(design, signal.data[0, middle].astype(float), rcond=None)[0]
    a, b, _ = fit
    assert np.hypot(a, b) == pytest.approx(1e-6, rel=2e-3)
    lag = (np.arctan2(b, a) - 0.3) / (2 * np.pi * frequency) * 120.0  # samples
    assert abs(lag) < 0.01
    assert np.abs(signal.data[0, middle] - design @ fit).max() < 2e-3 * 1e-6


@pytest.mark.parametrize("sfreq", [1000.0, 300.3074951171875, 512.0])
@pytest.mark.parametrize("frequency", [42.0, 48.0, 50.0])
def test_it_is_flat_up_to_five_twelfths_of_the_new_rate(sfreq, frequency):
    data = preprocess(_raw([_sine(frequency, sfreq, 10.0)], sfreq), PLAIN).data[0, 60:-60]
    expected = np.sin(2 * np.pi * frequency * np.arange(60, 60 + len(data)) / 120 + 0.3)
    assert np.abs(data - expected).max() < 1.5e-3


def test_a_start_far_from_the_rest_costs_no_precision():
    noise = _noise(2, 30_000, 1e-6)
    settling = noise + np.where(np.arange(30_000) < 3000, 0.1, 1e-3)
    late = slice(600, None)
    difference = preprocess(_raw(settling), PLAIN).data[:, late].astype(float) - preprocess(_raw(noise), PLAIN).data[:, late]
    difference -= difference.mean(axis=1, keepdims=True)
    assert np.abs(difference).max() < 2e-9  # a mean that the start has drawn to 0.01 V would leave steps of 1e-9 V


def test_an_impulse_late_in_the_recording_stays_where_it_is():
    # Ten minutes at an odd rate: a wrong ratio or a chunk that starts off by one shows up as a lag.
    sfreq, second = 300.3074951171875, 583.0
    times = np.arange(round(600 * sfreq)) / sfreq
    pulse = np.exp(-0.5 * ((times - second) / 0.05) ** 2)
    data = preprocess(_raw([pulse, -pulse], sfreq), PLAIN).data.astype(float)
    weight = np.clip(data[0] - np.median(data[0]), 0, None) ** 2
    assert (weight * np.arange(data.shape[1]) / 120).sum() / weight.sum() == pytest.approx(second, abs=1e-4)
    assert data.shape[1] == round(len(times) / sfreq * 120)


@pytest.mark.parametrize(
    ("sfreq", "frequency"), [(1000.0, 60.0), (1000.0, 70.0), (1000.0, 119.0), (1000.0, 240.0), (300.3074951171875, 100.0)]
)
def test_what_would_alias_is_gone(sfreq, frequency):
    data = preprocess(_raw([_sine(frequency, sfreq, 10.0)], sfreq), PLAIN).data
    assert np.abs(data[:, 60:-60]).max() < 1.2e-3  # -60 dB, and a little for the ripple of the window


@pytest.mark.parametrize("n_times", [201, 1000, 4007])
def test_the_ends_have_no_step(n_times):
    # On an offset, zero padding would bend the ends down by half.
    raw = _raw([np.full(n_times, 5.0) + 1e-3 * _sine(2.0, 1000.0, n_times / 1000)])
    data = preprocess(raw, PLAIN).data
    assert np.abs(data).max() < 2.1e-3


def test_a_small_signal_on_a_large_offset_keeps_its_precision():
    # 1 uV on 1 mV of offset: in float32 the offset alone would eat four of the seven digits.
    noise = _noise(4, 20_000, 1e-6)
    with_offset = preprocess(_raw(noise + 1e-3), PLAIN).data
    without = preprocess(_raw(noise), PLAIN).data
    assert np.abs(with_offset - without).max() < 1e-6 * 3e-7
    assert with_offset.dtype == np.float32
    np.testing.assert_allclose(with_offset.mean(axis=1, dtype=float), 0, atol=1e-13)


@pytest.mark.parametrize("sfreq", [1000.0, 512.0, 300.3074951171875, 120.0])
def test_pieces_give_what_the_whole_gives(sfreq, monkeypatch):
    raw = _raw(_noise(3, 5003) + 1e-3, sfreq)
    whole = preprocess(raw, PLAIN).data
    for values in (1, 300, 3000):  # samples of three channels together
        monkeypatch.setattr(room, "CHUNK_VALUES", values)
        np.testing.assert_array_equal(preprocess(raw, PLAIN).data, whole)


def test_resampling_agrees_with_scipy_on_an_exact_ratio():
    from scipy.signal import resample_poly

    data = np.cumsum(_noise(2, 10_000), axis=1)  # slow enough for both filters to let everything pass
    ours = preprocess(_raw(data), PLAIN).data
    theirs = resample_poly(data - data.mean(axis=1, keepdims=True), 3, 25, axis=1, window=("kaiser", 8.0), padtype="line")
    difference = (ours - theirs)[:, 60:-60]
    difference -= difference.mean(axis=1, keepdims=True)
    assert difference.std() < 0.01 * theirs.std()


def test_the_rate_of_the_recording_is_left_alone_where_it_is_the_one_wanted():
    data = _noise(3, 600)
    signal = preprocess(_raw(data, 120.0), PLAIN)
    np.testing.assert_array_equal(signal.data, preprocess(_raw(data, 120.0), PreprocessConfig(sfreq=120.0)).data)
    np.testing.assert_allclose(signal.data, data - data.mean(axis=1, keepdims=True), atol=1e-5 * 1e-6)


def test_nothing_is_scaled():
    signal = preprocess(_raw([1e-5 * _sine(5.0, 1000.0, 5.0), 3e-5 * _sine(5.0, 1000.0, 5.0)]), PLAIN)
    np.testing.assert_allclose(np.abs(signal.data[:, 60:-60]).max(axis=1), [1e-5, 3e-5], rtol=5e-3)


def test_a_file_on_disk_gives_what_memory_gives_and_is_not_loaded(tmp_path):
    raw = _raw(_noise(8, 9001), 300.3074951171875)
    raw.save(tmp_path / "a_raw.fif", fmt="double", verbose="error")
    on_disk = mne.io.read_raw_fif(tmp_path / "a_raw.fif", verbose="error")
    # References before and after what is kept: the order of channels must survive reading by pieces.
    config = PreprocessConfig(reference=("P4", "Fp1"), highpass=1.0)
    first, second = preprocess(raw, config), preprocess(on_disk, config)
    np.testing.assert_array_equal(first.data, second.data)
    assert first.ch_names == second.ch_names
    assert not on_disk.preload


def test_the_raw_is_not_changed():
    raw = _raw(_noise() + 1.0)
    before, info = raw.get_data(), raw.info.copy()
    preprocess(raw, PreprocessConfig(reference="average", highpass=1.0, lowpass=40.0, positions="biosemi64"))
    np.testing.assert_array_equal(raw.get_data(), before)
    assert not mne.utils.object_diff(raw.info, info)


def test_a_recording_of_less_than_a_sample_is_refused():
    with pytest.raises(RuntimeError, match=r"s1: 3 samples at 1000 Hz are not one sample at 120 Hz"):
        preprocess(_raw(_noise(2, 3)), PLAIN, uid="s1")


# ------------------------------------------------------------------------------------------------------------------------ filters


def test_band_pass_and_notch_do_what_they_say():
    seconds, sfreq = 60.0, 500.0
    parts = {0.2: 1.0, 5.0: 1.0, 20.0: 1.0, 50.0: 1.0}
    data = sum(_sine(frequency, sfreq, seconds) for frequency in parts)

    def amplitudes(config):
        result = preprocess(_raw([data], sfreq), config).data[0, 1200:-1200].astype(float)
        times = np.arange(1200, 1200 + len(result)) / 120
        design = np.concatenate([[np.sin(2 * np.pi * f * times), np.cos(2 * np.pi * f * times)] for f in parts]).T
        fit = np.linalg.lstsq(design, result, rcond=None)[0].reshape(-1, 2)
        phase = np.arctan2(fit[1, 1], fit[1, 0])
        return dict(zip(parts, np.hypot(*fit.T), strict=True)), phase

    band, phase = amplitudes(PreprocessConfig(highpass=3.0, lowpass=40.0))
    assert band[0.2] < 0.01
    assert band[5.0] == pytest.approx(1, abs=5e-3)
    assert band[20.0] == pytest.approx(1, abs=5e-3)
    assert phase == pytest.approx(0.3, abs=1e-3)  # zero phase
    low, _ = amplitudes(PreprocessConfig(lowpass=10.0))
    assert low[0.2] == pytest.approx(1, abs=5e-3)
    assert low[20.0] < 0.01
    open_, _ = amplitudes(PLAIN)
    notched, _ = amplitudes(PreprocessConfig(notch=(50.0,)))
    assert notched[50.0] < 0.005 * open_[50.0]
    assert notched[20.0] == pytest.approx(open_[20.0], abs=5e-3)


def test_the_half_length_is_the_reach_of_the_filter():
    # The response to an impulse shows how far the filter reaches to either side; without a filter nothing is claimed.
    impulse = np.zeros((2, 120 * 20))
    impulse[0, 1200] = 1
    impulse[1, 1200] = 2
    assert preprocess(_raw(impulse, 120.0), PLAIN).filter_half_length == 0.0
    claimed = []
    for config in (PreprocessConfig(highpass=1.0), PreprocessConfig(notch=(30.0,)), PreprocessConfig(highpass=1.0, notch=(30.0,))):
        signal = preprocess(_raw(impulse, 120.0), config)
        response = signal.data[0] - np.median(signal.data[0])
        touched = np.flatnonzero(np.abs(response) > 1e-6 * np.abs(response).max())
        claimed.append(signal.filter_half_length)
        assert room.filter_half_length(config) == claimed[-1]
        assert np.abs(touched - 1200).max() / 120 == pytest.approx(claimed[-1], rel=0.02 if len(claimed) < 3 else 0.5)
        assert np.abs(touched - 1200).max() / 120 <= claimed[-1]
    assert claimed[2] == pytest.approx(claimed[0] + claimed[1])  # one after the other reaches as far as both


def test_a_filter_longer_than_the_recording_is_refused():
    with pytest.raises(ValueError, match=r"s1: the filter is 33\.\d+ s long, the recording only 4\.00 s"):
        preprocess(_raw(_noise()), PreprocessConfig(highpass=0.1), uid="s1")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sfreq": 0.0}, "sfreq must be a positive"),
        ({"sfreq": float("nan")}, "sfreq must be a positive"),
        ({"highpass": 0.0}, "highpass must lie between 0 and sfreq / 2 = 60 Hz, got 0.0"),
        ({"lowpass": 60.0}, "lowpass must lie between"),
        ({"highpass": 20.0, "lowpass": 10.0}, "highpass must be below lowpass"),
        ({"notch": (60.0,)}, "anti-alias filter takes the line out"),
        ({"notch": (50.0, 1.0)}, "got 1.0"),
        ({"reference": "Cz"}, r"One channel is written as \('Cz',\)"),
        ({"reference": ()}, "reference needs channel names"),
        ({"reference": ("M1", "M1")}, "each once"),
        ({"channels": "misc"}, "channels must be one of None, meg, eeg, mag, grad, got 'misc'"),
        ({"positions": "biosemi129"}, "one of MNE's montages .*biosemi128"),
    ],
)
def test_a_config_out_of_range_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        PreprocessConfig(**fields)


def test_a_config_survives_json():
    config = PreprocessConfig(sfreq=64.0, highpass=1.0, notch=(25.0,), reference=("M1", "M2"), positions="biosemi128")
    assert PreprocessConfig(**json.loads(json.dumps(dataclasses.asdict(config)))) == config


# ----------------------------------------------------------------------------------------------------------------------- channels


def test_meg_comes_before_eeg_and_references_are_left_out():
    names = ["MEG 0111", "MEG 0112", "R1", "EEG 001", "STI 014", "MISC 001"]
    raw = _raw(_noise(6), names=names, types=["mag", "grad", "ref_meg", "eeg", "stim", "misc"])
    assert preprocess(raw, PLAIN).ch_names == ("MEG 0111", "MEG 0112")
    assert preprocess(raw, PLAIN).ch_types == ("mag", "grad")
    assert preprocess(raw, PreprocessConfig(channels="mag")).ch_names == ("MEG 0111",)
    assert preprocess(raw, PreprocessConfig(channels="grad")).ch_names == ("MEG 0112",)
    assert preprocess(raw, PreprocessConfig(channels="eeg")).ch_names == ("EEG 001",)
    assert not preprocess(raw, PLAIN).dropped


@pytest.mark.parametrize(
    "name", ["STI 014", "Status", "AUD", "Aux5", "AUX_1", "Audio-L", "Trigger", "TRIG1", "MISC 003", "Photodiode", "DIN1"]
)
def test_an_audio_trigger_or_auxiliary_channel_among_the_picks_is_an_error(name):
    raw = _raw(_noise(4), names=["Fp1", "Fp2", name, "Cz"])
    with pytest.raises(ValueError, match=rf"s1: expected brain channels only, got {name} typed as eeg\. .*raw\.set_channel_types") as error:
        preprocess(raw, PLAIN, uid="s1")
    # The advice works as it is written.
    advice = str(error.value).split("raw.set_channel_types(")[1].split(")")[0].replace("'", '"')
    raw.set_channel_types(json.loads(advice), on_unit_change="ignore")
    assert preprocess(raw, PLAIN).ch_names == ("Fp1", "Fp2", "Cz")


def test_electrodes_are_not_taken_for_something_else():
    names = mne.channels.make_standard_montage("easycap-M1").ch_names + mne.channels.make_standard_montage("GSN-HydroCel-256").ch_names
    names += mne.channels.make_standard_montage("biosemi256").ch_names + [f"EEG {n:03d}" for n in range(1, 61)] + ["EXG1", "M1"]
    names = list(dict.fromkeys(names))
    signal = preprocess(_raw(_noise(len(names), 240), 120.0, names=names), PLAIN)
    assert signal.ch_names == tuple(names)


def test_eyes_heart_and_peripheral_inputs_typed_as_eeg_are_left_out_and_counted():
    raw = _raw(_noise(9), names=["Fp1", "Fp2", "Cz", "HEOG", "EOG 061", "ECG", "GSR1", "Resp", "Plet"])
    signal = preprocess(raw, PLAIN)
    assert signal.ch_names == ("Fp1", "Fp2", "Cz")
    assert signal.dropped == {"not on the brain": 6}


def test_a_kind_that_is_not_there_says_what_is():
    raw = _raw(_noise(3), names=["Fp1", "Fp2", "X"], types=["eeg", "eeg", "misc"])
    with pytest.raises(ValueError, match=r"s1: no mag or grad channel for channels='meg', the raw has 2 eeg, 1 misc"):
        preprocess(raw, PreprocessConfig(channels="meg"), uid="s1")


def test_bad_flat_and_broken_channels_are_left_out_and_counted():
    data = _noise(8) + 1e-3
    data[1, 100] = np.nan
    data[2, -1] = np.inf
    data[3] = 2e-3
    raw = _raw(data)
    raw.info["bads"] = ["Fp1"]
    signal = preprocess(raw, PLAIN)
    assert signal.ch_names == ("C3", "C4", "P3", "P4")
    assert signal.dropped == {"marked bad": 1, "not finite": 2, "flat": 1}
    assert np.isfinite(signal.data).all()
    clean = preprocess(_raw(data[4:], names=EEG[4:]), PLAIN)
    np.testing.assert_array_equal(signal.data, clean.data)


@pytest.mark.parametrize(("value", "reason"), [(0.0, "flat"), (np.nan, "not finite")])
def test_no_usable_channel_is_an_error(value, reason):
    with pytest.raises(RuntimeError, match=rf"s1: no usable channel remains: Fp1 \({reason}\)"):
        preprocess(_raw(np.full((8, 2000), value)), PLAIN, uid="s1")


def test_the_loss_of_more_than_half_of_the_channels_is_an_error():
    data = _noise(8)
    data[:4] = 0
    assert preprocess(_raw(data), PLAIN).dropped == {"flat": 4}
    raw = _raw(data)
    raw.info["bads"] = ["P4"]
    with pytest.raises(RuntimeError, match=r"s1: more than half, 5 of 8 channels, cannot be used: Fp1 \(flat\), .*P4 \(marked bad\)"):
        preprocess(raw, PLAIN, uid="s1")


# ---------------------------------------------------------------------------------------------------------------------- reference


def test_a_reference_by_name_is_subtracted_as_a_mean_and_left_out():
    data = _noise(8, 1200)
    signal = preprocess(_raw(data, 120.0), PreprocessConfig(reference=("Fp1", "P4")))
    assert signal.ch_names == tuple(EEG[1:-1])
    assert signal.dropped == {"used as reference": 2}
    expected = data[1:-1] - data[[0, -1]].mean(axis=0)
    np.testing.assert_allclose(signal.data, expected - expected.mean(axis=1, keepdims=True), atol=1e-11)


def test_the_average_reference_is_that_of_the_good_channels():
    data = _noise(8, 1200)
    data[0] *= 1000
    data[1] = np.nan
    raw = _raw(data, 120.0)
    raw.info["bads"] = ["Fp1"]
    signal = preprocess(raw, PreprocessConfig(reference="average"))
    good = data[2:] - data[2:].mean(axis=1, keepdims=True)
    np.testing.assert_allclose(signal.data, good - good.mean(axis=0), atol=1e-11)
    np.testing.assert_allclose(signal.data.sum(axis=0), 0, atol=1e-10)


def test_a_reference_is_taken_off_in_full_precision():
    # Mains of 10 mV on all electrodes, 1 uV on each: in float32 the former would leave 1 nV of the latter's digits.
    own = _noise(8, 6000, 1e-6)
    shared = 1e-2 * _sine(20.0, 1000.0, 6.0)
    for config in (PreprocessConfig(reference="average"), PreprocessConfig(reference=("Fp1", "P4"))):
        difference = preprocess(_raw(own + shared), config).data - preprocess(_raw(own), config).data
        assert np.abs(difference).max() < 1e-12


def test_a_recording_of_bad_channels_is_refused_before_it_is_read(monkeypatch):
    raw = _raw(_noise(4))
    raw.info["bads"] = ["Fp1", "Fp2", "F3"]
    monkeypatch.setattr(raw, "get_data", None)
    with pytest.raises(RuntimeError, match=r"s1: more than half, 3 of 4 channels, cannot be used: Fp1 \(marked bad\)"):
        preprocess(raw, PLAIN, uid="s1")


def test_a_reference_that_cannot_serve_is_an_error():
    raw = _raw(_noise(4), names=["Fp1", "Fp2", "M1", "Audio"], types=["eeg", "eeg", "eeg", "misc"])
    with pytest.raises(ValueError, match=r"s1: the reference channels M2, Audio are not EEG channels"):
        preprocess(raw, PreprocessConfig(reference=("M1", "M2", "Audio")), uid="s1")
    raw.info["bads"] = ["M1"]
    with pytest.raises(RuntimeError, match=r"s1: the reference channels M1 \(marked bad\) cannot be used"):
        preprocess(raw, PreprocessConfig(reference=("M1",)), uid="s1")
    with pytest.raises(ValueError, match="is for EEG"):
        preprocess(_raw(_noise(2), names=["MEG 1", "MEG 2"], types="mag"), PreprocessConfig(reference="average"))


# ---------------------------------------------------------------------------------------------------------------------- positions


def test_positions_are_unknown_unless_the_file_or_the_config_has_them():
    raw = _raw(_noise())
    assert np.isnan(preprocess(raw, PLAIN).positions).all()
    positions = preprocess(raw, PreprocessConfig(positions="biosemi64")).positions
    np.testing.assert_allclose([positions.min(axis=0), positions.max(axis=0)], [[0, 0], [1, 1]])
    place = dict(zip(EEG, positions, strict=True))
    assert place["C3"][0] < place["Fp1"][0] < place["Fp2"][0] < place["C4"][0]  # left to right
    assert place["P3"][1] < place["C3"][1] < place["F3"][1] < place["Fp1"][1]  # back to front


def test_a_montage_changes_no_recording_that_has_positions():
    raw = _raw(_noise())
    raw.set_montage("biosemi64")
    own = preprocess(raw, PLAIN).positions
    np.testing.assert_array_equal(preprocess(raw, PreprocessConfig(positions="biosemi128")).positions, own)


def test_electrodes_are_projected_as_mne_does():
    names = mne.channels.make_standard_montage("biosemi64").ch_names
    raw = _raw(_noise(64, 240), 120.0, names=names)
    raw.set_montage("biosemi64")
    places = mne.channels.make_eeg_layout(raw.info).pos[:, :2]
    expected = (places - places.min(axis=0)) / np.ptp(places, axis=0)
    np.testing.assert_allclose(preprocess(raw, PLAIN).positions, expected, atol=1e-6)


def test_a_channel_that_the_montage_does_not_know_stays_unknown():
    raw = _raw(_noise(9))  # E0 is the ninth
    positions = preprocess(raw, PreprocessConfig(positions="biosemi64")).positions
    assert np.isfinite(positions[:8]).all()
    assert np.isnan(positions[8]).all()
    with pytest.raises(ValueError, match=r"s1: positions='biosemi128' knows none of the channels Fp1, Fp2"):
        preprocess(_raw(_noise(2)), PreprocessConfig(positions="biosemi128"), uid="s1")


def test_a_sensor_stands_at_the_same_place_whichever_others_are_bad():
    raw = _raw(_noise())
    config = PreprocessConfig(positions="biosemi64")
    all_places = preprocess(raw, config).positions
    raw.info["bads"] = ["Fp1", "P4"]
    np.testing.assert_array_equal(preprocess(raw, config).positions, all_places[1:-1])


def _helmet(n_channels=157, names=None, system=None, seed=0):
    """A half sphere of KIT gradiometers, placed at random."""
    rng = np.random.default_rng(seed)
    points = rng.standard_normal((n_channels, 3))
    points[:, 2] = np.abs(points[:, 2])
    points *= 0.12 / np.linalg.norm(points, axis=1, keepdims=True)
    raw = _raw(_noise(n_channels, 240), 120.0, names=names or [f"MEG {n:03d}" for n in range(1, n_channels + 1)], types="mag")
    for channel, point in zip(raw.info["chs"], points, strict=True):
        channel["loc"][:3] = point
        channel["coil_type"] = 6001 if system is not None else channel["coil_type"]  # FIFFV_COIL_KIT_GRAD
    with raw.info._unlock():
        raw.info["kit_system_id"] = system
    return raw, points


def test_the_layout_of_another_system_is_not_taken():
    # System 34 is New York's: MNE's KIT-157 has a place for each of these names, but not where these sensors are.
    raw, points = _helmet(system=34)
    layout = mne.find_layout(raw.info)
    assert layout.kind == "KIT-157"
    assert {name.replace("MEG ", "") for name in layout.names} >= {f"{n:03d}" for n in range(1, 158)}
    positions = preprocess(raw, PLAIN).positions
    for axis in (0, 1):
        assert np.corrcoef(positions[:, axis], points[:, axis])[0, 1] > 0.95


def test_the_layout_of_the_system_is_taken_when_the_sensors_are_there():
    layout = mne.channels.read_layout("KIT-157")
    places = layout.pos[:, :2]
    raw, _ = _helmet(system=34)
    order = [layout.names.index(name) for name in raw.ch_names]
    flat = (places - places.mean(axis=0))[order] / np.abs(places - places.mean(axis=0)).max() * 1.5  # polar angle, radians
    polar, azimuth = np.linalg.norm(flat, axis=1), np.arctan2(flat[:, 1], flat[:, 0])
    for channel, p, a in zip(raw.info["chs"], polar, azimuth, strict=True):
        channel["loc"][:3] = 0.12 * np.array([np.sin(p) * np.cos(a), np.sin(p) * np.sin(a), np.cos(p)])
    expected = (places - places.min(axis=0)) / np.ptp(places, axis=0)
    np.testing.assert_allclose(preprocess(raw, PLAIN).positions, expected[order], atol=1e-6)


def test_meg_sensors_without_a_location_are_unknown():
    raw, _ = _helmet()
    raw.info["chs"][5]["loc"][:3] = 0
    positions = preprocess(raw, PLAIN).positions
    assert np.flatnonzero(np.isnan(positions).any(axis=1)).tolist() == [5]


def test_channels_on_one_line_are_placed_in_the_middle_of_the_other():
    raw = _raw(_noise(3), names=["Fz", "Cz", "Pz"])
    for channel, y in zip(raw.info["chs"], (0.08, 0.0, -0.08), strict=True):
        channel["loc"][:3] = (0, y, 0.1)
    np.testing.assert_allclose(preprocess(raw, PLAIN).positions, [[0.5, 1], [0.5, 0.5], [0.5, 0]], atol=1e-6)


# -------------------------------------------------------------------------------------------------------------------------- cache


class _OneFile:
    """A dataset of one .fif that counts how often it is read."""

    def __init__(self, path):
        self.path, self.reads = path, 0
        self.recording = Recording("tiny", "01", run="1")

    def fingerprint(self, recording):
        assert recording == self.recording
        return file_identity(self.path)

    def read_raw(self, recording):
        assert recording == self.recording
        self.reads += 1
        return mne.io.read_raw_fif(self.path, verbose="error")


@pytest.fixture
def one_file(tmp_path):
    data = _noise(9, 5000)
    data[3] = 0
    raw = _raw(data, 500.0)
    raw.set_montage("biosemi64", on_missing="ignore")
    raw.save(tmp_path / "one_raw.fif", verbose="error")
    return _OneFile(tmp_path / "one_raw.fif")


def _same(first, second):
    np.testing.assert_array_equal(first.data, second.data)
    np.testing.assert_array_equal(first.positions, second.positions)
    for name in ("uid", "sfreq", "ch_names", "ch_types", "filter_half_length", "dropped"):
        assert getattr(first, name) == getattr(second, name)


def test_cached_equals_fresh_and_is_read_once(one_file, tmp_cache):
    config = PreprocessConfig(highpass=1.0)
    fresh = preprocess(one_file.read_raw(one_file.recording), config, uid="tiny/sub-01/run-1")
    one_file.reads = 0
    for _ in range(3):
        _same(load_signal(one_file, one_file.recording, config, tmp_cache), fresh)
    assert one_file.reads == 1
    assert isinstance(load_signal(one_file, one_file.recording, config, tmp_cache).data, np.memmap)
    assert fresh.dropped == {"flat": 1}
    assert np.isnan(fresh.positions).any()


def test_another_config_or_another_file_is_read_again(one_file, tmp_cache):
    load_signal(one_file, one_file.recording, PLAIN, tmp_cache)
    for n, config in enumerate([PreprocessConfig(sfreq=100.0), PreprocessConfig(reference="average"), PreprocessConfig(notch=(50.0,))]):
        load_signal(one_file, one_file.recording, config, tmp_cache)
        assert one_file.reads == 2 + n
    _raw(_noise(9, 5000, seed=1), 500.0).save(one_file.path, overwrite=True, verbose="error")
    again = load_signal(one_file, one_file.recording, PLAIN, tmp_cache)
    assert one_file.reads == 5
    assert not again.dropped


def test_the_cache_of_an_older_version_is_not_used(one_file, tmp_cache, monkeypatch):
    load_signal(one_file, one_file.recording, PLAIN, tmp_cache)
    monkeypatch.setattr(room, "VERSION", room.VERSION + 1)
    load_signal(one_file, one_file.recording, PLAIN, tmp_cache)
    assert one_file.reads == 2
