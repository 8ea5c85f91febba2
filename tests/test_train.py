"""Fitting: it learns, it stops, it can be killed anywhere and goes on to the same last bit."""

import json
import random
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from brainspeech import hub, losses, models, retrieval
from brainspeech.batches import BatchConfig, SegmentDataset, fit_statistics
from brainspeech.records import FeatureTrack, Segment, Signal, Span
from brainspeech.train import TrainConfig, _batch_order, _stream, _valid_batches, fit, fit_ridge

SFREQ = 20.0
CONFIG = TrainConfig(lr=3e-3, batch_size=16, max_epochs=3, patience=5, seed=3, precision="fp32")


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Operations this small only wait for one another on several threads, for minutes where the machine is busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make_data(*, n_subjects=2, seconds=150.0, n_channels=4, n_features=3, lag=0.15, noise=0.3, seed=0, heard=lambda onset: onset):
    """Channels that mix a smooth sound, ``lag`` seconds late, differently in each subject; train, valid and test follow one another.

    ``heard`` says which moment of the sound a window is paired with.
    """
    rng = np.random.default_rng(seed)
    n = round(seconds * SFREQ)
    sound = np.apply_along_axis(np.convolve, 1, rng.standard_normal((n_features, n)), np.hanning(7), mode="same")
    track = FeatureTrack("toy", "a", 0.0, seconds, sound.astype(np.float32), SFREQ)
    signals, segments = {}, []
    for subject in range(n_subjects):
        uid = f"d/sub-{subject}"
        brain = rng.standard_normal((n_channels, n_features)) @ np.roll(sound, round(lag * SFREQ), axis=1)
        data = (1e-6 * (brain + noise * rng.standard_normal(brain.shape))).astype(np.float32)
        positions = rng.random((n_channels, 2)).astype(np.float32)
        signals[uid] = Signal(uid, data, SFREQ, tuple(f"E{c}" for c in range(n_channels)), ("eeg",) * n_channels, positions)
        for onset in np.arange(0.0, seconds - 3.0, 1.5).tolist():
            split = "train" if onset < 0.7 * seconds else "valid" if onset < 0.85 * seconds else "test"
            span = (Span("a", 0.0, seconds, -heard(onset)),)
            segments.append(Segment(uid, uid, onset, 3.0, f"a@{onset:g}", split, "", "", split, span))
    config = BatchConfig(lag=lag)
    tracks = {track.key: track}
    train = [s for s in segments if s.split == "train"]
    statistics = fit_statistics(train, signals, tracks, config=config, fill=0.0)
    whole = SegmentDataset(segments, signals, tracks, config=config, statistics=statistics, subjects=tuple(signals), fill=0.0)
    return {name: whole.subset([i for i, s in enumerate(segments) if s.split == name]) for name in ("train", "valid", "test")}


DATA = make_data()


def make_encoder(seed=0, name="conv"):
    torch.manual_seed(seed)
    if name == "linear_clip":
        return models.build(name, n_subjects=2, n_features=3, n_channels=4, lags=range(-3, 4), rank=4)
    return models.build("conv", n_subjects=2, n_features=3, n_virtual=6, hidden=8, depth=2, n_harmonics=3)


def run(config=CONFIG, *, data=DATA, loss=None, encoder=None, **kwargs):
    encoder = encoder or make_encoder()
    return fit(encoder, loss or losses.build("clip"), data["train"], data["valid"], config, progress=False, **kwargs)


def same(first, second):
    a, b = first.state_dict(), second.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def without_time(history):
    return [{k: v for k, v in entry.items() if k != "seconds"} for entry in history]


class Dying(nn.Module):
    """A loss that ends the process, or the fit, at a given call."""

    def __init__(self, at, how):
        super().__init__()
        self.inner, self.at, self.how, self.calls = losses.build("clip"), at, how, 0

    def scores(self, estimates, candidates):
        return self.inner.scores(estimates, candidates)

    def forward(self, *args, **kwargs):
        self.calls += 1
        if self.calls == self.at:
            raise self.how
        return self.inner(*args, **kwargs)


class Temperature(nn.Module):
    """A loss with something to learn, and without scores."""

    def __init__(self):
        super().__init__()
        self.inner = losses.build("clip")
        self.log_scale = nn.Parameter(torch.zeros(()))

    def forward(self, estimates, candidates, **kwargs):
        return self.inner(estimates * self.log_scale.exp(), candidates, **kwargs)


def test_it_learns_what_was_planted_and_not_what_was_not():
    """The unseen test windows are found among their candidates; with brain and sound at odds by far they are not."""
    config = replace(CONFIG, max_epochs=10, lr=2e-2)

    def test_accuracy(data):
        fitted = run(config, data=data, encoder=make_encoder(name="linear_clip"))
        first = data["test"].unique()
        candidates = data["test"].targets(first)
        column = {int(data["test"].stimulus_id[i]): j for j, i in enumerate(first)}
        batch = data["test"].batch(range(len(data["test"])))
        with torch.no_grad():
            estimates = fitted.encoder(batch.signal, batch.positions, batch.subject, channel_mask=batch.channel_mask)
        ranks = retrieval.ranks(estimates, candidates, torch.tensor([column[int(i)] for i in batch.stimulus_id]))
        return retrieval.topk_accuracy(ranks, 1), len(first)

    accuracy, n = test_accuracy(DATA)
    assert accuracy > 0.8
    accuracy, n = test_accuracy(make_data(heard=_far))
    assert accuracy < 4 / n


def _far(onset):
    """A moment 10.5 s away on the same side of the split."""
    return onset + 10.5 if onset < 60 or 105 < onset < 115 else onset - 10.5


def test_the_same_seed_gives_the_same_bits_and_another_does_not():
    first, again, other = run(), run(), run(replace(CONFIG, seed=4))
    assert same(first.encoder, again.encoder)
    assert without_time(first.history) == without_time(again.history)
    assert not same(first.encoder, other.encoder)


def test_fit_leaves_the_global_generators_where_they_were():
    encoder = make_encoder()
    torch.manual_seed(11)
    random.seed(11)
    wanted = torch.rand(3), random.random()
    torch.manual_seed(11)
    random.seed(11)
    run(encoder=encoder, config=replace(CONFIG, max_epochs=1))
    assert torch.equal(torch.rand(3), wanted[0])
    assert random.random() == wanted[1]


def test_history_metrics_and_checkpoint(tmp_path):
    fitted = run(out=tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == fitted.history
    assert [set(line) for line in lines] == [{"epoch", "step", "train_loss", "valid_loss", "valid_top10", "lr", "seconds"}] * 3
    n_steps = len(DATA["train"]) // 16
    assert [line["step"] for line in lines] == [n_steps, 2 * n_steps, 3 * n_steps]
    assert lines[-1]["train_loss"] < lines[0]["train_loss"]
    assert (fitted.path, fitted.device, fitted.precision, fitted.resumed_at) == (tmp_path / "checkpoint", "cpu", "fp32", 0)
    suffixes = {p.suffix for p in fitted.path.iterdir()}
    assert suffixes == {".json", ".safetensors"}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint", "metrics.jsonl"]
    best = hub.read_tensors(fitted.path / "best.safetensors")
    assert all(torch.equal(best[f"encoder.{k}"], v) for k, v in fitted.encoder.state_dict().items())


def test_validation_equals_the_loop():
    """Mean over segments of the batch losses, and top-10 among the distinct stimuli, both of the best weights."""
    fitted = run(replace(CONFIG, max_epochs=1))
    valid, loss = DATA["valid"], losses.build("clip")
    first = valid.unique()
    assert len(first) < len(valid)
    total, hits = 0.0, 0
    with torch.no_grad():
        for rows in _valid_batches(len(valid), CONFIG):
            batch = valid.batch(rows)
            estimates = fitted.encoder(batch.signal, batch.positions, batch.subject, channel_mask=batch.channel_mask)
            total += float(loss(estimates, batch.target, row_ids=batch.stimulus_id).loss) * len(rows)
            scores = loss.scores(estimates, valid.targets(first))
            for row, i in enumerate(rows):
                own = [valid.segments[j].stimulus_id for j in first].index(valid.segments[i].stimulus_id)
                hits += int((scores[row] > scores[row, own]).sum() < 10)
    assert fitted.history[0]["valid_loss"] == pytest.approx(total / len(valid), rel=1e-6)
    assert fitted.history[0]["valid_top10"] == pytest.approx(hits / len(valid))


def test_it_stops_early_and_gives_back_the_best_weights(tmp_path):
    """A learning rate that is far too high gets worse after its best epoch."""
    config = replace(CONFIG, lr=0.3, max_epochs=60, patience=2)
    fitted = run(config, out=tmp_path)
    valid = [entry["valid_loss"] for entry in fitted.history]
    assert fitted.best_epoch == int(np.argmin(valid))
    assert len(valid) == fitted.best_epoch + 1 + 2 < 60
    short = run(replace(config, max_epochs=fitted.best_epoch + 1))
    assert same(short.encoder, fitted.encoder)
    again = run(config, out=tmp_path, resume=True)
    assert again.resumed_at == len(valid)
    assert same(again.encoder, fitted.encoder)


@pytest.mark.parametrize("how", [KeyboardInterrupt(), RuntimeError("power cut")])
def test_an_interrupted_fit_goes_on_to_the_same_bits(tmp_path, how):
    whole = run(out=tmp_path / "whole")
    per_epoch = len(DATA["train"]) // 16 + len(_valid_batches(len(DATA["valid"]), CONFIG))
    with pytest.raises(type(how)):
        run(out=tmp_path / "cut", loss=Dying(per_epoch + 3, how))
    torch.manual_seed(99)  # nothing of the present process may matter
    rest = run(out=tmp_path / "cut", resume=True, encoder=make_encoder(seed=7))
    assert rest.resumed_at == 1
    assert same(rest.encoder, whole.encoder)
    assert without_time(rest.history) == without_time(whole.history)
    assert [json.loads(x) for x in (tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()] == rest.history


def test_a_killed_process_goes_on_to_the_same_bits(tmp_path):
    """SIGKILL in the second epoch: no handler, no clean-up, no flush."""
    script = f"""
        import os, signal, sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        import torch
        torch.set_num_threads({torch.get_num_threads()})
        import test_train as t

        class Killer(t.Dying):
            def forward(self, *args, **kwargs):
                self.calls += 1
                if self.calls == self.at:
                    os.kill(os.getpid(), signal.SIGKILL)
                return self.inner(*args, **kwargs)

        n = len(t.DATA["train"]) // 16 + len(t._valid_batches(len(t.DATA["valid"]), t.CONFIG))
        t.run(out={str(tmp_path)!r}, loss=Killer(n + 2, None))
    """
    ended = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=False)
    assert ended.returncode == -9, ended.stderr
    rest = run(out=tmp_path, resume=True)
    assert rest.resumed_at == 1
    assert same(rest.encoder, run().encoder)


def test_more_epochs_of_a_finished_fit(tmp_path):
    run(out=tmp_path)
    longer = replace(CONFIG, max_epochs=5)
    assert same(run(longer, out=tmp_path, resume=True).encoder, run(longer).encoder)


def test_a_fresh_fit_removes_the_traces_of_an_earlier_one(tmp_path):
    run(out=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run(out=tmp_path, loss=Dying(2, KeyboardInterrupt()))
    assert not (tmp_path / "checkpoint").exists()
    assert (tmp_path / "metrics.jsonl").read_text() == ""
    assert run(out=tmp_path, resume=True).resumed_at == 0


def test_resuming_something_else_is_refused(tmp_path):
    run(out=tmp_path, config=replace(CONFIG, max_epochs=1))
    with pytest.raises(ValueError, match=r"another configuration: lr \(was 0\.003, now 0\.1\)"):
        run(replace(CONFIG, lr=0.1), out=tmp_path, resume=True)
    other = DATA | {"train": DATA["train"].subset(range(40))}
    with pytest.raises(ValueError, match="other segments"):
        run(data=other, out=tmp_path, resume=True)
    with pytest.raises(ValueError, match="other segments, channels or lag"):
        run(data={k: v.with_lag(0.1) for k, v in DATA.items()}, out=tmp_path, resume=True)
    with pytest.raises(RuntimeError, match="does not fit LinearClip"):
        run(encoder=make_encoder(name="linear_clip"), out=tmp_path, resume=True)
    (tmp_path / "checkpoint" / "state.json").write_text("{")
    with pytest.raises(RuntimeError, match=r"state\.json is damaged"):
        run(out=tmp_path, resume=True)
    with pytest.raises(ValueError, match="needs the run folder"):
        run(resume=True)


def test_parameters_of_the_loss_are_trained_saved_and_resumed(tmp_path):
    whole = run(loss=Temperature())
    assert whole.loss.log_scale.item() != 0
    run(replace(CONFIG, max_epochs=2), loss=Temperature(), out=tmp_path)
    rest = run(loss=Temperature(), out=tmp_path, resume=True)
    assert same(rest.loss, whole.loss)
    assert same(rest.encoder, whole.encoder)


def test_an_estimate_that_is_not_finite_stops_the_fit_and_names_its_segments(tmp_path):
    class Broken(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = make_encoder()

        def forward(self, signal, positions, subject, channel_mask=None):
            out = self.inner(signal, positions, subject, channel_mask)
            return torch.where((subject == 1)[:, None, None], out / 0.0, out)

    with pytest.raises(RuntimeError, match=r"estimate is not finite in epoch 0: got NaN or infinity for d/sub-1 at [\d.]+ s") as error:
        run(encoder=Broken(), out=tmp_path)
    assert "d/sub-0" not in str(error.value)
    assert not (tmp_path / "checkpoint").exists()


def test_a_loss_that_is_not_finite_names_the_batch_and_leaves_the_last_checkpoint(tmp_path):
    class Late(Dying):
        def forward(self, *args, **kwargs):
            self.calls += 1
            output = self.inner(*args, **kwargs)
            return output._replace(loss=output.loss * (torch.nan if self.calls >= self.at else 1.0))

    n = len(DATA["train"]) // 16 + len(_valid_batches(len(DATA["valid"]), CONFIG))
    with pytest.raises(RuntimeError, match=r"loss is not finite in epoch 1: .* and 8 more"):
        run(loss=Late(n + 1, None), out=tmp_path)
    assert json.loads((tmp_path / "checkpoint" / "state.json").read_text())["sampler"]["next_epoch"] == 1
    state = hub.read_tensors(tmp_path / "checkpoint" / "weights.safetensors")
    assert all(bool(t.isfinite().all()) for t in state.values())


def test_batches_of_an_epoch():
    config = replace(CONFIG, batch_size=8)
    orders = [np.concatenate(_batch_order(30, config, epoch=e)) for e in range(2)]
    for order in orders:
        assert len(order) == len(set(order.tolist())) == 24
    assert not np.array_equal(orders[0], orders[1])
    assert [len(b) for b in _batch_order(5, config, epoch=0)] == [5]
    for n, size in [(2, 8), (3, 2), (9, 8), (30, 8), (16, 8)]:
        parts = _valid_batches(n, replace(config, batch_size=size))
        assert sorted(np.concatenate(parts).tolist()) == list(range(n))
        assert min(map(len, parts)) >= 2
    assert all(np.array_equal(a, b) for a, b in zip(_valid_batches(30, config), _valid_batches(30, config), strict=True))


def test_batches_gathered_ahead_for_a_device_come_in_order():
    """The meta device stands for a GPU: a thread gathers the next batch, and no batch is lost, doubled or swapped."""
    order = _batch_order(len(DATA["train"]), CONFIG, epoch=0)
    seen = list(_stream(DATA["train"], order, torch.device("meta")))
    assert [rows.tolist() for rows, _ in seen] == [rows.tolist() for rows in order]
    assert all(batch.signal.device.type == "meta" and len(batch.signal) == len(rows) for rows, batch in seen)
    plain = list(_stream(DATA["train"], order, torch.device("cpu")))
    assert all(torch.equal(batch.signal, DATA["train"].batch(rows).signal) for rows, batch in plain)


def test_steps_are_capped_and_a_small_set_is_one_batch():
    assert run(replace(CONFIG, max_steps_per_epoch=2)).history[-1]["step"] == 6
    assert run(replace(CONFIG, batch_size=10_000)).history[-1]["step"] == 3


def test_bad_input():
    for what, other in (("training", {"train": DATA["train"].subset([0])}), ("validation", {"valid": DATA["valid"].subset([0])})):
        with pytest.raises(ValueError, match=f"at least two {what} segments .* got 1"):
            run(data=DATA | other)
    for kwargs in ({"precision": "fp8"}, {"batch_size": 1}, {"max_epochs": 0}, {"patience": 0}, {"lr": 0.0}, {"weight_decay": -1.0}):
        with pytest.raises(ValueError, match=next(iter(kwargs))):
            TrainConfig(**kwargs)


def test_bf16_computes_in_bf16_and_leaves_an_ordinary_encoder():
    """A second fit in the same process may have another precision; the loss sees float32 in both."""
    seen = []

    class Watching(Temperature):
        def forward(self, estimates, candidates, **kwargs):
            seen.append((estimates.dtype, torch.is_autocast_enabled("cpu")))
            return super().forward(estimates, candidates, **kwargs)

    encoder = make_encoder()
    inside = []
    encoder.head.register_forward_hook(lambda *_: inside.append(torch.is_autocast_enabled("cpu")))
    reduced = run(replace(CONFIG, precision="bf16", max_epochs=1), encoder=encoder, loss=Watching())
    assert all(inside)
    assert set(seen) == {(torch.float32, False)}
    assert reduced.precision == "bf16"
    full = run(replace(CONFIG, max_epochs=1))
    assert full.history[0]["train_loss"] == pytest.approx(reduced.history[0]["train_loss"], rel=0.05)
    assert full.history[0]["train_loss"] != reduced.history[0]["train_loss"]
    batch = DATA["valid"].batch([0, 1])
    inside.clear()
    reduced.encoder(batch.signal, batch.positions, batch.subject)
    assert inside == [False]
    assert all(p.dtype == torch.float32 for p in reduced.encoder.parameters())


def test_the_bar_says_how_it_goes(capsys):
    fit(make_encoder(), losses.build("clip"), DATA["train"], DATA["valid"], replace(CONFIG, max_epochs=1), name="encoder")
    assert "encoder" in capsys.readouterr().err
    run(replace(CONFIG, max_epochs=1))
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


def test_ridge_equals_the_normal_equations():
    """One subject, one lag, no reduction: the weights of the textbook."""
    data = {k: v.with_lag(0.15).subset([i for i, s in enumerate(v.segments) if s.subject == "d/sub-0"]) for k, v in make_data().items()}
    for part in data.values():
        part.subjects = ("d/sub-0",)
    ridge = fit_ridge(data["train"], data["valid"], lags=[0], alphas=[1e-3], batch_size=7, progress=False)
    batches = [data[name].batch(range(len(data[name]))) for name in ("train", "valid")]
    x = torch.cat([batch.signal.double().transpose(0, 1).flatten(1) for batch in batches], 1)
    y = torch.cat([batch.target.double().transpose(0, 1).flatten(1) for batch in batches], 1)
    x, y = x - x.mean(1, keepdim=True), y - y.mean(1, keepdim=True)
    xx = x @ x.T / x.shape[1]
    wanted = torch.linalg.solve(xx + 1e-3 * xx.diagonal().mean() * torch.eye(4), x @ y.T / x.shape[1])
    torch.testing.assert_close(ridge.weight[0, :, :, 0], wanted.T.float(), rtol=1e-3, atol=1e-4)


def test_ridge_finds_the_test_windows_at_the_planted_lag_only():
    def accuracy(lag):
        data = {k: v.with_lag(lag) for k, v in DATA.items()}
        ridge = fit_ridge(data["train"], data["valid"], lags=[0], progress=False)
        batch, first = data["test"].batch(range(len(data["test"]))), data["test"].unique()
        estimates = ridge(batch.signal, batch.positions, batch.subject, channel_mask=batch.channel_mask)
        column = {int(data["test"].stimulus_id[i]): j for j, i in enumerate(first)}
        own = torch.tensor([column[int(i)] for i in batch.stimulus_id])
        ranks = retrieval.ranks_from_scores(ridge.scores(estimates, data["test"].targets(first)), own).ranks
        return retrieval.topk_accuracy(ranks, 1)

    assert accuracy(0.15) > 0.9
    assert accuracy(-0.5) < 0.3


def test_ridge_counts_what_it_left_out():
    unseen = {k: v.subset(range(len(v))) for k, v in DATA.items()}
    lone = unseen["train"].subset([i for i, s in enumerate(unseen["train"].segments) if s.subject == "d/sub-0"])
    lone.subjects = ("d/sub-0",)
    lone._subject = torch.zeros(len(lone), dtype=torch.int64)
    valid = unseen["valid"]
    valid._subject = torch.tensor([0 if s.subject == "d/sub-0" else -1 for s in valid.segments])
    ridge = fit_ridge(lone, valid, lags=[0], progress=False)
    assert ridge.counts == {"n_unseen_valid": len(valid) // 2, "n_subjects_without_valid": 0}
    assert not ridge.training
