"""A saved folder at work: windows -> estimates -> scores and ranks against candidates. Nothing of the training data is needed.

Shapes: n windows, N candidates, C channels, T times after the lag is cut; F features of what was heard, G features of an estimate, which
are F but with a target encoder.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
import torch
from torch import Tensor

from brainspeech import given, hub, losses, models, naming, retrieval
from brainspeech import recipe as recipes
from brainspeech.batches import SegmentDataset
from brainspeech.listing import some
from brainspeech.losses.base import Loss
from brainspeech.losses.joint import Joint
from brainspeech.models.base import Encoder, TargetEncoder, estimator
from brainspeech.preprocess import preprocess
from brainspeech.recipe import Choice, Recipe
from brainspeech.records import FeatureTrack, Segment, Signal, Span
from brainspeech.scaling import Scale, Statistics, borrow_scale, fit_scale
from brainspeech.timing import to_samples

Tracks = Mapping[tuple[str, float, float], FeatureTrack]

# How the names of tensors begin that a folder keeps beside the weights of its encoder.
POSITIONS = "positions/"
TARGET_ENCODER = "target_encoder/"


@dataclass(frozen=True, eq=False)
class Pretrained:
    """An encoder with all that estimates take.

    Parameters
    ----------
    encoder : Encoder
    loss : Loss
        That compares; with a target encoder, a ``Joint``.
    recipe : Recipe
        The constants of the fit.
    statistics : Statistics
        What windows and features are scaled with.
    positions : dict from str to array, shape (n_channels, 2)
        Where the channels of each recording are, in the order of its statistics.
    subjects, ch_names : tuple of str
        Of the training; the channels of the encoder.
    config : mapping
        What the folder's config.json says.
    """

    encoder: Encoder
    loss: Loss
    recipe: Recipe
    statistics: Statistics
    positions: Mapping[str, np.ndarray]
    subjects: tuple[str, ...]
    ch_names: tuple[str, ...]
    config: Mapping[str, Any]

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read a folder that a fit, a run or ``SpeechDecoder.save`` wrote.

        Raises
        ------
        FileNotFoundError, RuntimeError
            If a file is missing or damaged, or the folder holds a module that is no decoder, or needs a class that is not at hand.
        """
        saved = hub.load(folder)
        config = saved.config
        absent = [key for key in ("recipe", "subjects", "ch_names", "fill") if key not in config]
        if absent or saved.statistics is None or not saved.extra:
            raise RuntimeError(
                f"{folder} holds a module, but no decoder (no {', '.join(absent) or 'statistics or positions'}). If it was saved by an "
                "earlier version, the same brainspeech run saves it anew."
            )
        try:
            recipe = recipes.restore(Recipe(name="", title="", dataset=Choice("arrays")), config["recipe"])
            statistics = Statistics.load(folder / hub.STATISTICS)
        except (TypeError, KeyError, AttributeError) as error:
            raise RuntimeError(
                f"{folder}: its constants do not fit this version ({error}); it was written by brainspeech {config.get('version')}."
            ) from error
        naming.check_at_hand("loss", recipe.loss.name, losses.LOSSES, where=str(folder / hub.CONFIG))
        loss = losses.build(recipe.loss.name, **recipe.loss.options)
        if recipe.target_encoder is not None:
            loss = Joint(loss, _target_encoder(folder, config, saved.extra))
        return cls(
            encoder=cast(Encoder, saved.module),
            loss=loss.eval(),
            recipe=recipe,
            statistics=statistics,
            positions={key.removeprefix(POSITIONS): t.numpy() for key, t in saved.extra.items() if key.startswith(POSITIONS)},
            subjects=tuple(config["subjects"]),
            ch_names=tuple(config["ch_names"]),
            config=config,
        )

    def save(self, folder: Path, *, config: Mapping[str, Any], card: str | None = None) -> Path:
        """Write the folder that ``load`` reads; ``config`` is what config.json says, without what ``hub.save`` writes itself."""
        extra = {POSITIONS + uid: torch.from_numpy(places) for uid, places in self.positions.items()}
        if self.target_encoder is not None:
            extra |= {TARGET_ENCODER + key: value for key, value in self.target_encoder.state_dict().items()}
        return hub.save(folder, self.encoder, config=config, statistics=dataclasses.asdict(self.statistics), extra=extra, card=card)

    @property
    def target_encoder(self) -> TargetEncoder | None:
        """What was trained jointly with the encoder and turns a candidate's features into what is estimated; None without one."""
        return cast(TargetEncoder, self.loss.target_encoder) if isinstance(self.loss, Joint) else None

    @property
    def n_features(self) -> int | None:
        """F: features of a candidate; None where nothing says."""
        target = self.target_encoder
        config = self.config["model_config"] if target is None else target.config
        return config.get("n_features")

    # ---------------------------------------------------------------------------------------------------------------------- windows

    def windows(
        self,
        signal: Any,
        *,
        subject: Any = None,
        recording: str | None = None,
        onsets: Sequence[float] | None = None,
        ch_names: Sequence[str] | None = None,
        sfreq: float | None = None,
        refit: bool = False,
    ) -> tuple[SegmentDataset, list[str]]:
        """Put windows that are given where windows of a training stand: into batches. The arguments are those of ``predict``.

        Returns
        -------
        SegmentDataset
            Without targets.
        list of str
            What was missing and what stands in for it.

        Raises
        ------
        ValueError
            If windows have another length, no channel is known, or the signal is in another unit.
        """
        recipe = self.recipe
        rate, duration = recipe.preprocess.sfreq, recipe.segments.duration
        if recording is not None and recording not in self.statistics.scales:
            raise ValueError(
                f"No recording {recording!r} in the training; leave it out, or take one of {some(self.statistics.scales, 10)}."
            )
        if recording is not None and subject is None:
            subject = "/".join(recording.split("/")[:2])
        notes: list[str] = []
        if onsets is not None:
            one = self._who(subject, 1, notes)[0]
            uid = recording or f"{one}/given"
            whole = signal if isinstance(signal, Signal) else preprocess(signal, recipe.preprocess, uid=uid)
            signals = {uid: dataclasses.replace(whole, uid=uid)}
            segs = [given.silent_segment(uid, one, float(onset), duration) for onset in onsets]
        elif hasattr(signal, "n_times") or isinstance(signal, Signal):
            raise ValueError("A whole recording needs onsets=: the seconds at which its windows begin.")
        else:
            if not hasattr(signal, "info"):
                signal = np.asarray(signal)
                ch_names = self.ch_names if ch_names is None and signal.shape[1:2] == (len(self.ch_names),) else ch_names
            n_times = to_samples(duration, rate)
            read = given.read_windows(signal, sfreq=rate, n_times=n_times, ch_names=ch_names, from_sfreq=sfreq)
            read = dataclasses.replace(read, positions=None)  # those of the training, by name
            who = self._who(subject, len(read.data), notes)
            uids = [recording or f"{name}/given" for name in who]
            signals, segs = given.make_signals(read, uids, who, sfreq=rate, duration=duration)
        scales = {}
        for uid, whole in signals.items():
            own = [s for s in segs if s.recording == uid]
            signals[uid], scales[uid] = self._match(whole, own, refit=refit, notes=notes)
        return self._batches(segs, signals, scales), list(dict.fromkeys(notes))

    def _match(self, signal: Signal, segs: Sequence[Segment], *, refit: bool, notes: list[str]) -> tuple[Signal, Scale]:
        """Keep the channels that the decoder knows, with their positions, and find the scale of the recording."""
        uid = signal.uid
        own = self.statistics.scales.get(uid)
        expected = self.ch_names if own is None else own.ch_names
        names = [name for name in signal.ch_names if name in set(expected)]
        if not names:
            raise ValueError(
                f"None of the channels {', '.join(signal.ch_names[:5])} ... is one of the decoder's: {', '.join(expected[:5])} ... "
                "Rename them."
            )
        missing = [name for name in expected if name not in set(names)]
        if missing:
            notes.append(f"{len(missing)} of {len(expected)} channels are missing and masked: {', '.join(missing[:10])}.")
        if len(names) < len(signal.ch_names):
            unknown = [name for name in signal.ch_names if name not in set(names)]
            notes.append(f"{len(unknown)} channels are unknown to the decoder and not used: {', '.join(unknown[:10])}.")
        places = dict(zip(signal.ch_names, signal.positions, strict=True))
        if np.isnan(signal.positions).all():
            places = self._average() if own is None else dict(zip(own.ch_names, self.positions[uid], strict=True))
        nowhere = np.full(2, np.nan, np.float32)
        signal = given.pick(signal, names, np.array([places.get(name, nowhere) for name in names]))
        if refit:
            return signal, fit_scale(signal, segs, config=self.recipe.batches)
        if own is not None:
            scale = given.pick_scale(own, names)
        else:
            trained = {uid: s for uid, s in self.statistics.scales.items() if self.statistics.n_windows.get(uid, 1)}
            scale, _ = borrow_scale(signal, trained)
        given.check_unit(signal, scale)
        return signal, scale

    def _average(self) -> dict[str, np.ndarray]:
        """Give each channel's position, averaged over the recordings that know it."""
        return given.average_positions(self.positions, {uid: self.statistics.scales[uid].ch_names for uid in self.positions})

    def _who(self, subject: Any, n: int, notes: list[str]) -> list[str]:
        """Find the subjects of windows by name, or by the last part of it."""
        if subject is None and len(self.subjects) == 1:
            return list(self.subjects) * n
        labels = given.spread_out("unseen" if subject is None else subject, n, "subject")
        short = {s.split("/sub-")[-1]: s for s in self.subjects}
        found = {name: name if name in self.subjects else short.get(name.removeprefix("sub-"), "") for name in set(labels)}
        unseen = sorted(name for name, full in found.items() if not full)
        if unseen:
            how = "the generic subject layer" if self.config["model_config"].get("generic_subject") else "no subject layer of their own"
            notes.append(
                f"{len(unseen)} subjects are not among those of the training ({', '.join(unseen[:5])}): they are decoded with {how} and "
                "scaled as the training's recordings were on average (refit=True: by themselves)."
            )
        return [found[name] or f"given/sub-{name.split('/')[-1].removeprefix('sub-')}" for name in labels]

    def _batches(self, segs: Sequence[Segment], signals: Mapping[str, Signal], scales: Mapping[str, Scale]) -> SegmentDataset:
        """Make batches of windows without targets; the encoder's channels in their order, whatever is there of them."""
        recipe, duration = self.recipe, self.recipe.segments.duration
        rate = recipe.preprocess.sfreq
        n_channels = len(self.ch_names)
        empty = np.zeros((n_channels, 0), np.float32), np.full((n_channels, 2), np.nan, np.float32)
        channels = Signal("channels", empty[0], rate, self.ch_names, ("eeg",) * n_channels, empty[1])
        nothing = FeatureTrack(given.SILENCE, given.SILENCE, 0.0, duration, np.zeros((1, 1), np.float32), 1 / duration)
        statistics = Statistics(scales=scales, target_mean=0.0, target_std=1.0, baseline=recipe.batches.baseline)
        return SegmentDataset(
            segs,
            {"channels": channels, **signals},
            {nothing.key: nothing},
            config=recipe.batches,
            statistics=statistics,
            subjects=self.subjects,
            fill=0.0,
            sfreq=rate,
        )

    # -------------------------------------------------------------------------------------------------------- estimates and candidates

    @torch.inference_mode()
    def estimate(self, windows: SegmentDataset, *, device: torch.device, batch_size: int = 64) -> np.ndarray:
        """Estimate what was heard in windows, so many at a time; shape (n, G, T)."""
        estimate = estimator(self.encoder.to(device).eval())
        parts = []
        for start in range(0, len(windows), batch_size):
            batch = windows.batch(range(start, min(start + batch_size, len(windows)))).to(device)
            parts.append(estimate(batch).float().cpu().numpy())
        return np.concatenate(parts)

    def targets(self, spans: Sequence[tuple[Span, ...]], tracks: Tracks, fill: float) -> np.ndarray:
        """Gather the targets of windows in which these spans are heard, standardised and cut as in training; shape (N, F, T).

        Raises
        ------
        ValueError
            If the tracks have another number of features than those of the training.
        """
        got = next(iter(tracks.values())).data.shape[0]
        if self.n_features is not None and got != self.n_features:
            what = "estimates" if self.target_encoder is None else "was fitted on"
            raise ValueError(f"The decoder {what} {self.n_features} features, the candidates have {got}.")
        recipe = self.recipe
        rate, duration = recipe.preprocess.sfreq, recipe.segments.duration
        silence = np.zeros((1, to_samples(duration, rate)), np.float32)
        signal = Signal("silence", silence, rate, ("none",), ("eeg",), np.full((1, 2), np.nan, np.float32))
        statistics = dataclasses.replace(self.statistics, scales={"silence": Scale(("none",), (0.0,), (1.0,))})
        segs = [dataclasses.replace(given.silent_segment("silence", "", 0.0, duration), spans=own) for own in spans]
        options: dict[str, Any] = {"statistics": statistics, "subjects": self.subjects, "fill": fill, "sfreq": rate}
        dataset = SegmentDataset(segs, {"silence": signal}, tracks, config=recipe.batches, **options)
        return dataset.targets(range(len(dataset))).numpy()

    @torch.inference_mode()
    def scores(self, estimates: np.ndarray, candidates: Any, *, device: torch.device) -> np.ndarray:
        """Score estimates (n, G, T) against candidates (N, F, T), as the loss does; shape (n, N), higher is nearer."""
        mine, others = self._compared(estimates, candidates, device)
        return self.loss.to(device).scores(mine, others).float().cpu().numpy()

    @torch.inference_mode()
    def ranks(self, estimates: np.ndarray, candidates: Any, targets: Any, *, device: torch.device) -> np.ndarray:
        """Rank each estimate's own candidate among all (N, F, T), shape (n,), or without ``targets`` all of them, (n, N); 0 is best."""
        if targets is None:
            return retrieval.ranks_of_all(self.scores(estimates, candidates, device=device)).numpy()
        mine, others = self._compared(estimates, candidates, device)
        if np.asarray(targets).dtype.kind not in "iu":
            raise ValueError(f"Targets must be columns of candidates, whole numbers, got {np.asarray(targets).dtype}.")
        columns = torch.as_tensor(np.asarray(targets).astype(np.int64), device=device)
        return retrieval.ranks(mine, others, columns, scores=self.loss.to(device).scores).cpu().numpy()

    def _compared(self, estimates: np.ndarray, candidates: Any, device: torch.device) -> tuple[Tensor, Tensor]:
        wanted = np.asarray(candidates, dtype=np.float32)
        n_features, n_times = self.n_features or estimates.shape[1], estimates.shape[2]
        if wanted.ndim != 3 or wanted.shape[1:] != (n_features, n_times):
            raise ValueError(f"Candidates must be (N, F, T) = (N, {n_features}, {n_times}), got {wanted.shape}: candidates() makes them.")
        return torch.from_numpy(estimates).to(device), torch.from_numpy(wanted).to(device)


def own_classes(config: Mapping[str, Any]) -> list[dict[str, str]]:
    """List the classes of the user's own that a saved folder needs: ``what`` each is, its ``name``, and its ``origin`` where it is known.

    Parameters
    ----------
    config : mapping
        What the folder's config.json says. What it says of origins is kept where a class is not at hand.
    """
    earlier = {entry["name"]: entry["origin"] for entry in config.get("classes", [])}
    names = {"model": str(config.get("model"))}
    for part in ("loss", "target_encoder", "feature"):
        names[part.replace("_", " ")] = str((config.get("recipe", {}).get(part) or {}).get("name"))
    own = {what: name for what, name in names.items() if naming.is_own(name)}
    return [{"what": what, "name": name, "origin": naming.origin(name) or earlier.get(name, "")} for what, name in own.items()]


def _target_encoder(folder: Path, config: Mapping[str, Any], extra: Mapping[str, Tensor]) -> TargetEncoder:
    """Build the target encoder of a saved folder and fill in its weights."""
    where = str(folder / hub.CONFIG)
    made = config.get("target_encoder")
    state = {key.removeprefix(TARGET_ENCODER): value for key, value in extra.items() if key.startswith(TARGET_ENCODER)}
    if not isinstance(made, Mapping) or not {"name", "config"} <= made.keys() or not state:
        raise RuntimeError(
            f"{folder}: the encoder was trained jointly with a target_encoder, which is not in this folder. It was saved by an earlier "
            "version; the same brainspeech run into a new folder keeps it."
        )
    naming.check_at_hand("target encoder", made["name"], models.TARGET_ENCODERS, where=where)
    target = models.build_target(made["name"], **made["config"])
    hub.load_state(target, state, where=str(folder / hub.EXTRA))
    return target.eval()
