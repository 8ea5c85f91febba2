"""Fitting: it learns, it stops, it can be killed anywhere and goes on to the same last bit."""

import json
import os
import random
import signal
import subprocess
import sys
import textwrap
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import FunctionType, SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from tqdm import tqdm

from brainspeech import backend, hub, loading, losses, models, retrieval, stopping, train
from brainspeech.batches import BatchConfig, SegmentDataset
from brainspeech.checkpoint import Store
from brainspeech.records import FeatureTrack, Segment, Signal, Span
from brainspeech.running import steps_of
from brainspeech.scaling import fit_statistics
from brainspeech.train import BAR, TrainConfig, _say, fit, fit_ridge
from brainspeech.watching import Watch

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
    """A loss that ends the process, or the fit, at a given call.

    To a checkpoint it is the loss that it wraps: what goes on from there was ended by something else.
    """

    name = property(lambda self: self.inner.name)
    config = property(lambda self: self.inner.config)

    def __init_subclass__(cls):
        cls.__qualname__ = Dying.__qualname__

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


Dying.__qualname__ = type(losses.build("clip")).__qualname__


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
        for (rows,) in steps_of(valid, CONFIG, epoch=None):
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
    per_epoch = len(DATA["train"]) // 16 + len(steps_of(DATA["valid"], CONFIG, epoch=None))
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

        n = len(t.DATA["train"]) // 16 + len(t.steps_of(t.DATA["valid"], t.CONFIG, epoch=None))
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
    with pytest.raises(ValueError, match=r"another encoder or loss: encoder\.class \(was \w+, now LinearClip\), encoder\.name"):
        run(encoder=make_encoder(name="linear_clip"), out=tmp_path, resume=True)
    (tmp_path / "checkpoint" / "state.json").write_text("{")
    with pytest.raises(RuntimeError, match=r"state\.json is damaged"):
        run(out=tmp_path, resume=True)
    with pytest.raises(ValueError, match="needs the run folder"):
        run(resume=True)


def test_an_encoder_or_loss_that_fits_the_weights_and_is_another_is_refused(tmp_path):
    """Neither a temperature nor dropout has weights, so those of the checkpoint would go in."""
    config = replace(CONFIG, max_epochs=1)
    first = run(config, out=tmp_path)
    colder = losses.build("clip", temperature=0.05)
    with pytest.raises(ValueError, match=r"another encoder or loss: loss\.temperature \(was \S+, now 0\.05\)\. Use another run folder"):
        run(config, out=tmp_path, loss=colder, resume=True)
    dry = models.build("conv", **make_encoder().config | {"spatial_dropout": 0.0})
    with pytest.raises(ValueError, match=r"another encoder or loss: encoder\.spatial_dropout \(was 0\.2, now 0\.0\)"):
        run(config, out=tmp_path, encoder=dry, resume=True)
    with pytest.raises(ValueError, match=r"loss\.class \(was \w+, now Temperature\)"):
        run(config, out=tmp_path, loss=Temperature(), resume=True)
    same_loss = losses.build("clip", temperature=1)  # 1.0 by default
    assert same(run(config, out=tmp_path, loss=same_loss, resume=True).encoder, first.encoder)


def test_checkpoints_of_earlier_versions_go_on(tmp_path):
    """They do not say what encoder and loss were made of, or do not know an option that is at its default."""
    config = replace(CONFIG, max_epochs=1)
    first = run(config, out=tmp_path)
    store = Store(tmp_path)
    for forget in (lambda state: state.made_of["encoder"][2].pop("spatial_dropout"), lambda state: state.made_of.clear()):
        state = store.load()
        forget(state)
        store.save(state)
        assert same(run(config, out=tmp_path, encoder=make_encoder(seed=7), resume=True).encoder, first.encoder)


def test_options_that_are_no_numbers_are_compared_by_what_they_are(tmp_path):
    """The text of a function or an object may hold its address, which is another in each process."""
    config = replace(CONFIG, max_epochs=1)

    def similarity(estimates, candidates):
        return estimates.flatten(1) @ candidates.flatten(1).T

    first = run(config, loss=losses.build("clip", similarity=similarity), out=tmp_path)
    kept = json.loads((tmp_path / "checkpoint" / "state.json").read_text())["made_of"]["loss"]
    assert kept[2]["similarity"].endswith(".similarity")
    copy = FunctionType(similarity.__code__, similarity.__globals__, similarity.__name__)
    copy.__qualname__ = similarity.__qualname__
    assert same(run(config, loss=losses.build("clip", similarity=copy), out=tmp_path, resume=True).encoder, first.encoder)
    with pytest.raises(ValueError, match=r"loss\.similarity \(was \S+\.similarity, now candidate_normalised\)"):
        run(config, out=tmp_path, resume=True)


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

    n = len(DATA["train"]) // 16 + len(steps_of(DATA["valid"], CONFIG, epoch=None))
    with pytest.raises(RuntimeError, match=r"loss is not finite in epoch 1: .* and 8 more"):
        run(loss=Late(n + 1, None), out=tmp_path)
    assert json.loads((tmp_path / "checkpoint" / "state.json").read_text())["sampler"]["next_epoch"] == 1
    state = hub.read_tensors(tmp_path / "checkpoint" / "weights.safetensors")
    assert all(bool(t.isfinite().all()) for t in state.values())


class Steep(Dying):
    """A loss that is finite, and whose gradient is not, at a given call."""

    def forward(self, estimates, *args, **kwargs):
        self.calls += 1
        output = self.inner(estimates, *args, **kwargs)
        return output._replace(loss=output.loss + (0 * estimates).sum().sqrt()) if self.calls == self.at else output


def test_a_gradient_that_is_not_finite_names_its_batch_and_no_checkpoint_has_it(tmp_path):
    """The optimiser would write NaN into every weight, a checkpoint after that step would have them, and the next batch would be blamed."""
    config = replace(CONFIG, checkpoint_minutes=0)
    rows = steps_of(DATA["train"], CONFIG, epoch=0)[2][0]
    first = DATA["train"].segments[rows[0]]
    with pytest.raises(
        RuntimeError,
        match=rf"gradient is not finite in epoch 0: got NaN or infinity for encoder\.\S+, .* from the batch with {first.recording} at "
        rf"{first.onset:g} s, .* and 8 more, .*\(lr=0\.003\).* The last checkpoint in .*checkpoint stands\.",
    ):
        run(config, out=tmp_path, loss=Steep(3, None))
    assert json.loads((tmp_path / "checkpoint" / "state.json").read_text())["sampler"]["next_step"] == 2
    assert same(run(config, out=tmp_path, resume=True).encoder, run().encoder)


def test_weights_that_are_not_finite_are_refused_at_the_start(tmp_path):
    encoder = make_encoder()
    with torch.no_grad():
        encoder.subject_layer.weight[0, 0, 0] = torch.inf
    with pytest.raises(RuntimeError, match=r"begins with weights that are not finite: .* in encoder\.subject_layer\.weight\. Initialise"):
        run(encoder=encoder)
    run(replace(CONFIG, max_epochs=1), out=tmp_path)
    state = Store(tmp_path).load()
    state.weights["encoder.subject_layer.weight"][0] = torch.nan
    Store(tmp_path).save(state)
    with pytest.raises(RuntimeError, match=r"checkpoint holds weights that are not finite: .*subject_layer\.weight\. Delete it and give"):
        run(out=tmp_path, resume=True)


def test_a_learning_rate_far_too_high_is_named():
    with pytest.raises(RuntimeError, match=r"is not finite in epoch 0: .*[Ll]ower the learning rate \(lr=1e\+30\)"):
        run(replace(CONFIG, lr=1e30))


def test_what_does_not_fit_into_memory_says_what_would():
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
    with pytest.raises(RuntimeError, match=r"not enough memory for batches of 16 segments: CUDA out of .* 20\.00 GiB\. Lower batch_size"):
        run(loss=Dying(2, error))


def test_the_loss_multiplies_with_all_bits_there_and_back(monkeypatch):
    """TF32 is for the encoder, in both directions: a stack of what was switched stands for the flags of a GPU."""
    switched, seen = [], []

    @contextmanager
    def tf32(on):
        switched.append(on)
        try:
            yield
        finally:
            switched.pop()

    class Look(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, where):
            ctx.where = where
            seen.append((where, "there", switched[-1]))
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            seen.append((ctx.where, "back", switched[-1]))
            return grad, None

    class Looking(Temperature):
        def forward(self, estimates, candidates, **kwargs):
            return super().forward(Look.apply(estimates, "loss"), candidates, **kwargs)

        def scores(self, estimates, candidates):
            seen.append(("ranks", "there", switched[-1]))
            return self.inner.scores(estimates, candidates)

    monkeypatch.setattr(backend, "tf32", tf32)
    encoder = make_encoder()
    encoder.head.register_forward_hook(lambda _, __, out: Look.apply(out, "encoder"))
    for on in (True, False):
        seen.clear()
        run(replace(CONFIG, max_epochs=1, tf32=on), encoder=encoder, loss=Looking())
        wanted = {("encoder", "there", on), ("encoder", "back", on), ("loss", "there", False), ("loss", "back", False)}
        assert set(seen) == wanted | {("ranks", "there", False)}
        assert switched == []


def test_a_fit_makes_its_batches_on_one_stream(monkeypatch):
    """A GPU's freed memory stays with its stream: a new stream for every epoch would hold batches of its own."""
    made, used, inner = [], set(), loading.stream
    monkeypatch.setattr(loading, "side_stream", lambda device: made.append(object()) or made[-1])
    monkeypatch.setattr(loading, "stream", lambda dataset, batches, device, side: used.add(side) or inner(dataset, batches, device))
    run()
    assert len(made) == 1
    assert used == set(made)


@pytest.mark.parametrize("loss", ["clip", "mv_infonce", "sdcon"])
def test_grouped_batches_hold_all_listeners_of_a_stimulus(loss):
    """Each stimulus was heard by two subjects: losses over views see both in every batch, in training and in validation."""
    seen = []

    class Watching(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = losses.build(loss)

        def forward(self, estimates, candidates, *, row_ids, col_ids):
            seen.append(row_ids.unique(return_counts=True)[1].tolist())
            return self.inner(estimates, candidates, row_ids=row_ids, col_ids=col_ids)

    config = replace(CONFIG, sampler="grouped", max_epochs=2)
    first = run(config, loss=Watching())
    assert {count for counts in seen for count in counts} == {2}
    assert max(map(sum, seen)) == 16
    assert first.history[1]["train_loss"] < first.history[0]["train_loss"]
    assert without_time(run(config, loss=Watching()).history) == without_time(first.history)


def test_grouped_batches_go_on_in_the_same_order(tmp_path):
    config = replace(CONFIG, sampler="grouped", views=1)
    run(replace(config, max_epochs=1), out=tmp_path)
    assert same(run(config, out=tmp_path, resume=True).encoder, run(config).encoder)
    with pytest.raises(ValueError, match=r"views \(was 1, now None\)"):
        run(replace(config, views=None), out=tmp_path, resume=True)


def stopping_at(at, signum, inner=None):
    """A loss that is sent a signal at a given call."""

    class Signalled(Dying):
        def forward(self, *args, **kwargs):
            self.calls += 1
            if self.calls == self.at:
                os.kill(os.getpid(), signum)
            return self.inner(*args, **kwargs)

    loss = Signalled(at, None)
    loss.inner = inner or loss.inner
    return loss


N_STEPS = len(DATA["train"]) // 16
N_VALID = len(steps_of(DATA["valid"], CONFIG, epoch=None))


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(
    ("at", "place"),
    [
        (1, "in epoch 0 after step 1"),
        (N_STEPS + N_VALID + 3, "in epoch 1 after step 3"),
        (N_STEPS + 1, f"in epoch 0 after step {N_STEPS}"),  # in the first batch of the validation: the checkpoint stands before it
        (N_STEPS + N_VALID, "after 1 epoch;"),
    ],
)
def test_a_signal_stops_at_a_step_and_the_fit_goes_on_to_the_same_bits(tmp_path, signum, at, place):
    """Sampler, dropout, augmentation, optimiser and the losses of the step's epoch so far: nothing is lost or done twice."""
    config = replace(CONFIG, max_epochs=2, augment=(("TimeShift", {"max_shift": 0.1}),))
    whole = run(config)
    with pytest.raises(stopping.Stopped, match=f"{stopping.name(signum)} {place}") as stop:
        run(config, out=tmp_path, loss=stopping_at(at, signum))
    assert stop.value.signum == signum
    torch.manual_seed(99)
    rest = run(config, out=tmp_path, resume=True, encoder=make_encoder(seed=7))
    assert same(rest.encoder, whole.encoder)
    assert without_time(rest.history) == without_time(whole.history)
    assert [json.loads(x) for x in (tmp_path / "metrics.jsonl").read_text().splitlines()] == rest.history
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.parametrize("times", [1, 2])
def test_an_interrupt_while_a_checkpoint_is_written(tmp_path, monkeypatch, times):
    """The first lets it be finished; the second ends the process there and then, and the checkpoint before stands."""
    config = replace(CONFIG, max_epochs=2)
    write, calls = hub.write_tensors, []

    def interrupted(path, tensors):
        calls.append(path)
        for _ in range(times if len(calls) == 6 else 0):  # the second file of the second epoch's
            os.kill(os.getpid(), signal.SIGINT)
        write(path, tensors)

    monkeypatch.setattr(hub, "write_tensors", interrupted)
    with pytest.raises(KeyboardInterrupt) as stop:
        run(config, out=tmp_path)
    assert isinstance(stop.value, stopping.Stopped) == (times == 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint", "metrics.jsonl"]
    assert len(Store(tmp_path).load().history) == 3 - times
    assert same(run(config, out=tmp_path, resume=True).encoder, run(config).encoder)


def test_a_signal_in_the_last_step_of_a_fit_is_not_forgotten(tmp_path):
    config = replace(CONFIG, max_epochs=1)
    with pytest.raises(stopping.Stopped, match="after 1 epoch;"):
        run(config, out=tmp_path, loss=stopping_at(N_STEPS + N_VALID, signal.SIGTERM))
    assert same(run(config, out=tmp_path, resume=True).encoder, run(config).encoder)


def test_minutes_between_checkpoints_within_an_epoch(tmp_path):
    """0 minutes is after every step: a power cut loses the present step only."""
    config = replace(CONFIG, max_epochs=2, checkpoint_minutes=0)
    with pytest.raises(RuntimeError, match="power cut"):
        run(config, out=tmp_path, loss=Dying(4, RuntimeError("power cut")))
    state = json.loads((tmp_path / "checkpoint" / "state.json").read_text())
    assert state["sampler"]["next_step"] == len(state["sampler"]["losses"]) == 3
    rest = run(replace(config, checkpoint_minutes=10.0), out=tmp_path, resume=True)
    assert same(rest.encoder, run(replace(CONFIG, max_epochs=2)).encoder)


def test_how_a_fit_is_run_may_change_and_what_comes_out_may_not(tmp_path):
    run(replace(CONFIG, max_epochs=1), out=tmp_path)
    whole = run()
    rest = run(replace(CONFIG, resident="full"), out=tmp_path, resume=True)
    assert same(rest.encoder, whole.encoder)
    for changed in ({"resident": "half"}, {"tf32": False}, {"compile": True}):
        with pytest.raises(ValueError, match=f"{next(iter(changed))} .was"):
            run(replace(CONFIG, **changed), out=tmp_path, resume=True)


def test_a_checkpoint_of_an_earlier_version_goes_on(tmp_path):
    """It knows nothing of the newer fields, which are at their defaults."""
    run(replace(CONFIG, max_epochs=1), out=tmp_path)
    path = tmp_path / "checkpoint" / "state.json"
    kept = json.loads(path.read_text())
    for name in ("sampler", "views", "tf32", "compile", "resident", "checkpoint_minutes"):
        del kept["config"][name]
    del kept["files"], kept["digest"]
    kept["sampler"] = {"seed": 3, "next_epoch": 1}
    path.write_text(json.dumps(kept))
    assert same(run(out=tmp_path, resume=True).encoder, run().encoder)


def test_a_checkpoint_of_a_later_version_is_refused(tmp_path):
    run(replace(CONFIG, max_epochs=1), out=tmp_path)
    state = Store(tmp_path).load()
    state.config["momentum"] = 0.5
    Store(tmp_path).save(state)
    with pytest.raises(ValueError, match=r"settings that this version does not have: momentum\. Install the version that wrote it"):
        run(out=tmp_path, resume=True)


def test_resident_data_give_the_same_bits_and_half_precision_nearly_the_same():
    whole, full = run(), run(replace(CONFIG, resident="full"))
    assert same(whole.encoder, full.encoder)
    assert "gathered in memory" in whole.placed
    assert "kept on the device" in full.placed
    half = run(replace(CONFIG, resident="half", max_epochs=1))
    assert half.history[0]["train_loss"] == pytest.approx(whole.history[0]["train_loss"], rel=0.01)
    assert half.history[0]["train_loss"] != whole.history[0]["train_loss"]


def test_a_loss_that_looks_for_itself_does_not_keep_the_segments_secret():
    class Complaining(Temperature):
        def forward(self, estimates, candidates, **kwargs):
            raise ValueError("rows 3, 5 are not finite")

    class Broken(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = make_encoder()

        def forward(self, *args, **kwargs):
            return self.inner(*args, **kwargs) * torch.nan

    with pytest.raises(RuntimeError, match="estimate is not finite in epoch 0: got NaN or infinity for d/sub-"):
        run(encoder=Broken(), loss=Complaining())
    with pytest.raises(ValueError, match="rows 3, 5"):
        run(loss=Complaining())


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_a_compiled_encoder_is_saved_as_an_ordinary_one(tmp_path, monkeypatch):
    """Traced, and run without a compiler: what is compiled is torch's matter, which module is whose is ours."""
    whole = run(replace(CONFIG, max_epochs=1), encoder=make_encoder(name="linear_clip"))
    monkeypatch.setattr(train.torch, "compile", partial(torch.compile, backend="eager"))
    config = replace(CONFIG, max_epochs=1, compile=True)
    fitted = run(config, out=tmp_path, encoder=make_encoder(name="linear_clip"))
    assert fitted.encoder.state_dict().keys() == whole.encoder.state_dict().keys()
    assert fitted.history[0]["valid_loss"] == pytest.approx(whole.history[0]["valid_loss"], rel=1e-5)
    assert run(config, out=tmp_path, resume=True, encoder=make_encoder(name="linear_clip")).resumed_at == 1
    torch.compiler.reset()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(
    "changes", [{}, {"resident": "never"}, {"tf32": False, "precision": "fp32"}, {"precision": "bf16", "resident": "half"}]
)
def test_on_a_gpu_it_learns_and_a_step_does_not_wait(tmp_path, changes):
    """After the first steps, torch raises an error at anything in our own step that waits for the device."""
    config = replace(CONFIG, max_epochs=2, **changes)

    class Silent(nn.Linear):  # an encoder without a look at its input
        def __init__(self):
            super().__init__(4, 3)

        def forward(self, signal, positions, subject, channel_mask=None):
            return super().forward(signal.transpose(1, 2)).transpose(1, 2)

    class Mse(nn.Module):
        def forward(self, estimates, candidates, *, row_ids, col_ids):
            torch.cuda.set_sync_debug_mode("error")
            return SimpleNamespace(loss=(estimates - candidates).square().mean())

    keep = train._read
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(train, "_read", lambda values, **how: (torch.cuda.set_sync_debug_mode("default"), keep(values, **how))[1])
            patch.setattr(train, "_validate", lambda *_: (torch.cuda.set_sync_debug_mode("default"), 1.0, 0.0)[1:])
            patch.setattr(Watch, "read", lambda self: self.flags.clear())
            fitted = run(config, encoder=Silent(), loss=Mse(), out=tmp_path)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert fitted.device == "cuda"
    assert fitted.history[1]["train_loss"] < fitted.history[0]["train_loss"]
    assert run(config, encoder=make_encoder()).history[1]["train_loss"] < 3


def test_batches_gathered_ahead_for_a_device_come_in_order():
    """The meta device stands for a GPU: a thread gathers the next batch, and no batch is lost, doubled or swapped."""
    order = [rows for (rows,) in steps_of(DATA["train"], CONFIG, epoch=0)]
    seen = list(loading.stream(DATA["train"], order, torch.device("meta")))
    assert [rows.tolist() for rows, _ in seen] == [rows.tolist() for rows in order]
    assert all(batch.signal.device.type == "meta" and len(batch.signal) == len(rows) for rows, batch in seen)
    plain = list(loading.stream(DATA["train"], order, torch.device("cpu")))
    assert all(torch.equal(batch.signal, DATA["train"].batch(rows).signal) for rows, batch in plain)


def test_steps_are_capped_and_a_small_set_is_one_batch():
    assert run(replace(CONFIG, max_steps_per_epoch=2)).history[-1]["step"] == 6
    assert run(replace(CONFIG, batch_size=10_000)).history[-1]["step"] == 3


def test_bad_input():
    for what, other in (("training", {"train": DATA["train"].subset([0])}), ("validation", {"valid": DATA["valid"].subset([0])})):
        with pytest.raises(ValueError, match=f"at least two {what} segments .* got 1"):
            run(data=DATA | other)
    frozen = make_encoder().requires_grad_(False)
    with pytest.raises(ValueError, match="nothing to fit: no parameter of the encoder or the loss requires a gradient"):
        run(encoder=frozen)


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
    first = capsys.readouterr().err
    assert "encoder: " in first
    assert f"(chance {1000 / len(DATA['valid'].unique()):.0f} %)" in first
    run(replace(CONFIG, max_epochs=1))
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


@pytest.mark.parametrize(
    ("top10", "chance", "said"),
    [(0.234, 10 / 260, "23 % (chance 3.8 %)"), (1.0, 0.1, "100 % (chance 10 %)"), (0.0, 0.0038, "0.0 % (chance 0.4 %)")],
)
def test_the_bar_names_the_validation_and_its_chance_within_100_columns(top10, chance, said):
    """After an hour of 240,000 steps."""
    text = _say({"valid_top10": top10, "valid_loss": 4.9123}, chance)
    assert text == f"valid top-10 {said}, loss 4.91"
    line = tqdm.format_meter(24_000, 240_000, 4000, ncols=100, prefix="encoder", bar_format=BAR, postfix=text)
    assert line.endswith(f"24000/240000 [1:06:40<10:00:00, {text}]")
    assert len(line) <= 100


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
