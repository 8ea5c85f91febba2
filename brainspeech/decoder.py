"""The decoder as one object in the manner of scikit-learn: fit, predict, score, rank, save, load, push and pull.

    from brainspeech import SpeechDecoder

    decoder = SpeechDecoder.from_recipe("demo")
    decoder.fit(dataset)
    decoder.score()  # top-10 accuracy on the test windows

Everything it does is done by the rooms that a recipe's run goes through: the same segments, batches, training and scores. How it is fitted
is in ``fitting``, how it is saved and given away in ``sharing``; what a saved folder can do, without a fit, is in ``pretrained``.

Shapes: n windows, N candidates, C channels, F features, G features of an estimate (F but with a target encoder), T times after the lag is
cut; T_w samples of a whole window.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from brainspeech import datasets, evaluate, features, fitting, flow, given, naming, retrieval
from brainspeech import recipe as recipes
from brainspeech.batches import BatchConfig
from brainspeech.cache import Cache, open_cache
from brainspeech.parameters import CHOICES, CONFIGS, as_choice
from brainspeech.preprocess import PreprocessConfig
from brainspeech.pretrained import Tracks
from brainspeech.recipe import Choice, Recipe
from brainspeech.records import Segment, Signal, Span
from brainspeech.segments import SegmentConfig
from brainspeech.sharing import Shareable
from brainspeech.timing import to_samples
from brainspeech.train import TrainConfig

DEFAULTS = Recipe(name="decoder", title="", dataset=Choice("arrays"))


class SpeechDecoder(Shareable):
    """Decode which speech segment was heard.

    The parameters are those of a recipe and are kept as they are given, so that ``sklearn.base.clone`` and grid searches work; a field of
    one is set as ``set_params(train__lr=1e-3, model__hidden=64)``.

    Parameters
    ----------
    model, loss : str, Choice, or what ``models.build`` and ``losses.build`` made
        The encoder and what it is trained with, by name and options. A module that was built stands for its name and options: a fit
        begins with weights of its own.
    feature : str, Choice or Feature
        What is estimated.
    target_encoder : str, Choice, or what ``models.build_target`` made, optional
        A network that is trained jointly with the encoder and turns the feature into what is estimated, such as ``deep_mel``.
    context : {"block", "window"}
        What a feature may hear.
    preprocess, segments, batches, train : config
        As in a recipe.
    lag : float, optional
        Seconds the brain follows the sound; None: that of ``batches``.
    seed : int, optional
        Of the training; None: that of ``train``.
    device : str, optional
        Where estimates are computed; None: on a GPU if there is one.

    Attributes
    ----------
    encoder_, loss_ : nn.Module
        With a target encoder, it is a part of the loss.
    subjects_ : tuple of str
        Of the training.
    ch_names_ : tuple of str
        The channels of the encoder.
    statistics_ : Statistics
        What windows and features are scaled with.
    positions_ : dict from str to array, shape (n_channels, 2)
        Where the channels of each recording are, in the order of its statistics.
    recipe_ : Recipe
        The constants that it was fitted with.
    scores_, test_ : array (W, N), TestSet
        Of the test windows; only after a fit.
    history_, warnings_ : list
        Epochs; what a reader of the result has to know. Only after a fit.
    """

    def __init__(
        self,
        *,
        model: Any = DEFAULTS.model,
        loss: Any = DEFAULTS.loss,
        feature: Any = DEFAULTS.feature,
        target_encoder: Any = DEFAULTS.target_encoder,
        context: str = DEFAULTS.context,
        preprocess: PreprocessConfig = DEFAULTS.preprocess,
        segments: SegmentConfig = DEFAULTS.segments,
        batches: BatchConfig = DEFAULTS.batches,
        train: TrainConfig = DEFAULTS.train,
        lag: float | None = None,
        seed: int | None = None,
        device: str | None = None,
    ):
        self.model = model
        self.loss = loss
        self.feature = feature
        self.target_encoder = target_encoder
        self.context = context
        self.preprocess = preprocess
        self.segments = segments
        self.batches = batches
        self.train = train
        self.lag = lag
        self.seed = seed
        self.device = device

    # ------------------------------------------------------------------------------------------------------------------- parameters

    @classmethod
    def from_recipe(cls, recipe: str | Recipe, *settings: str) -> Self:
        """Take the constants of a recipe.

        What concerns its report alone (rows, folds, evaluation) is given to ``run``.

        Parameters
        ----------
        recipe : str or Recipe
            Name of a shipped one, a file, a folder, or the recipe itself.
        *settings : str
            Changes, as ``--set`` has them: ``"train.max_epochs=5"``.
        """
        recipe = recipes.load(recipe) if isinstance(recipe, str) else recipe
        recipe = recipes.settle(recipes.change(recipe, settings))
        values = {name: getattr(recipe, name) for name in (*CHOICES, "context", *CONFIGS)}
        return cls(**values, seed=recipe.seeds[0])

    def _recipe(self, **changes: Any) -> Recipe:
        """Give the parameters as a recipe."""
        values: dict[str, Any] = {name: as_choice(getattr(self, name), name) for name in CHOICES}
        values |= {name: getattr(self, name) for name in ("context", *CONFIGS)}
        if self.lag is not None:
            values["batches"] = dataclasses.replace(self.batches, lag=self.lag)
        values["seeds"] = (self.train.seed if self.seed is None else self.seed,)
        return recipes.settle(dataclasses.replace(DEFAULTS, **({"rows": ("encoder",)} | values | changes)))

    # -------------------------------------------------------------------------------------------------------------------------- fit

    def fit(
        self,
        data: Any,
        targets: Any = None,
        *,
        cache: Cache | str | os.PathLike | None = None,
        subjects: str = "all",
        signals: Mapping[str, Signal] | None = None,
        tracks: Tracks | None = None,
        fill: float = 0.0,
        subject: Any = "1",
        stimuli: Sequence[Any] | None = None,
        blocks: Sequence[Any] | None = None,
        ch_names: Sequence[str] | None = None,
        ch_types: str | Sequence[str] = "eeg",
        positions: np.ndarray | None = None,
        sfreq: float | None = None,
        out: str | os.PathLike | None = None,
        progress: bool = False,
    ) -> Self:
        """Fit on a dataset, on segments, or on windows with their targets.

        Parameters
        ----------
        data : Dataset, sequence of Segment, array of shape (n, C, T_w), or mne.Epochs
            Windows are in volt or tesla, preprocessed already; at ``preprocess.sfreq``, or resampled to it. One sample more than a window
            has (both ends counted, as MNE does) is left out; of an array a warning says so.
        targets : array, shape (n, F, n_frames)
            With windows: what was heard during each, from its first sample to its last, at any rate.
        cache : Cache or path, optional
            With a dataset: where signals and features are kept; None: as on the command line.
        subjects : str
            With a dataset: ``all``, ``published``, ``first:3`` or its own numbers.
        signals, tracks, fill : mapping, mapping, float
            With segments: by recording, by ``Span.key``, and the feature's value where nothing is heard.
        subject : str, or sequence of str of length n
            With windows: who heard them.
        stimuli : sequence of length n, optional
            With windows: what was heard, by name; None: windows with equal targets heard the same.
        blocks : sequence of length n, optional
            With windows: what is split, where windows of several stimuli belong together (because they overlap); None: each stimulus.
        ch_names, ch_types, positions, sfreq
            Of an array: names; types; layout in [0, 1], shape (C, 2) (None: ``preprocess.positions`` by name); rate in Hz.
        out : path, optional
            Folder for the checkpoint; a fit that was stopped goes on there.
        progress : bool
            Show bars.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If what is given does not belong together, or a split is empty.
        """
        if isinstance(data, datasets.Dataset):
            recipe = self._recipe(name=data.name or "decoder", dataset=Choice(data.name), load=lambda root=None, **_: data)
            recipe = dataclasses.replace(recipe, subjects=subjects)
            own = self.feature if isinstance(self.feature, features.Feature) else None
            material = fitting.from_dataset(recipe, data, feature=own, cache=open_cache(cache), progress=progress)
        elif isinstance(data, Sequence) and data and isinstance(data[0], Segment):
            if signals is None or tracks is None:
                raise ValueError("Segments are fitted with signals= (by recording) and tracks= (by Span.key).")
            material = fitting.Material(self._recipe(), data, signals, tracks, fill)
        elif targets is None:
            raise ValueError(f"Expected a Dataset, segments, or windows with targets, got {type(data).__name__} and no targets.")
        else:
            material = fitting.from_windows(
                self._recipe(feature=Choice("precomputed")),
                data,
                targets,
                subject=subject,
                stimuli=stimuli,
                blocks=blocks,
                ch_names=ch_names,
                ch_types=ch_types,
                positions=positions,
                sfreq=sfreq,
            )
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary if out is None else out)
            fitted = fitting.fit(material, folder, progress=progress)
            self._take(folder / "model", feature=material.feature)
        self.scores_, self.test_ = fitted.scores, fitted.test
        self.history_, self.warnings_ = fitted.history, fitted.warnings
        return self

    def run(
        self,
        data: datasets.Dataset,
        out: str | os.PathLike,
        *,
        cache: Cache | str | os.PathLike | None = None,
        progress: bool = False,
        **changes: Any,
    ) -> evaluate.RetrievalReport:
        """Do all that ``brainspeech run`` does: fit, fit the references and the controls too, and write the report.

        Parameters
        ----------
        data : Dataset
        out : path
            The run folder.
        **changes
            Other fields of ``Recipe``: ``rows``, ``folds``, ``evaluate``, ``subjects``, ``seeds``, ``title``, and ``dataset``, the Choice
            that the report names.

        Returns
        -------
        RetrievalReport
            The decoder is then that of ``from_run(out)``.
        """
        if isinstance(self.feature, features.Feature):
            raise ValueError("A run names its feature, so that it can be made again: give a Choice or a name, not a Feature.")
        named = {"name": data.name, "title": data.name, "rows": DEFAULTS.rows, "dataset": Choice(data.name)}
        recipe = self._recipe(**(named | {"load": lambda root=None, **_: data} | changes))
        report = flow.run(recipe, out=out, cache=open_cache(cache), progress=progress)
        self._take_run(Path(out))
        return report

    # ---------------------------------------------------------------------------------------------------------------------- predict

    def predict(
        self,
        signal: Any,
        *,
        subject: Any = None,
        recording: str | None = None,
        onsets: Sequence[float] | None = None,
        ch_names: Sequence[str] | None = None,
        sfreq: float | None = None,
        refit: bool = False,
        batch_size: int = 64,
    ) -> np.ndarray:
        """Estimate what was heard in windows.

        Each window goes through what the training windows went through: baseline, the recording's scale, clamp, lag.

        Parameters
        ----------
        signal : array of shape (n, C, T_w), mne.Epochs, mne.io.Raw or Signal
            Windows in volt or tesla, preprocessed already, at the decoder's rate or resampled to it; or a whole recording: a Raw is
            preprocessed as in training.
        subject : str, or sequence of str of length n, optional
            Who it was, as in ``subjects_`` or the last part of that; None: the only one there is, else somebody unseen.
        recording : str, optional
            Uid of a training recording that the windows are of: its own scale and positions are taken. Otherwise they are borrowed from
            the subject's recordings, or, of somebody unseen, from all.
        onsets : sequence of float
            Of a whole recording: seconds from its first sample to the first sample of each window.
        ch_names, sfreq
            Of an array: the channels' names (None: ``ch_names_``) and rate in Hz (None: the decoder's). Channels are matched by name; a
            warning counts those that are missing, which are masked, and those that the decoder does not know, which are not used.
        refit : bool
            Scale by medians and IQRs of the windows given, in place of borrowed ones.
        batch_size : int
            Windows at a time.

        Returns
        -------
        array of float32, shape (n, G, T)

        Raises
        ------
        ValueError
            If windows have another length, no channel is known, or the signal is in another unit.
        """
        given_windows, notes = self._fitted().windows(
            signal, subject=subject, recording=recording, onsets=onsets, ch_names=ch_names, sfreq=sfreq, refit=refit
        )
        for note in notes:
            warnings.warn(note, stacklevel=2)
        return self._fitted().estimate(given_windows, device=self._device(), batch_size=batch_size)

    # ------------------------------------------------------------------------------------------------------------ candidates, scores

    def candidates(
        self,
        stimuli: Any,
        *,
        dataset: datasets.Dataset | None = None,
        cache: Cache | str | os.PathLike | None = None,
        progress: bool = False,
    ) -> np.ndarray:
        """Make what estimates are ranked against: features of speech segments, standardised and cut as in training.

        Parameters
        ----------
        stimuli : one of
            array of shape (N, F, n_frames): features, each from the first to the last sample of a window. One frame more than a window has
            samples (both ends counted) is left out, with a warning, as in ``fit``.
            sequence of (samples, audio_sfreq): sounds as long as a window.
            sequence of (name, start): the windows that begin at these seconds of the dataset's stimuli; the feature hears the window only.
            sequence of Segment: of the dataset; the feature hears their spans.
        dataset : Dataset
            That knows the stimuli by name.
        cache : Cache or path, optional
            Where features are kept; None: as on the command line.

        Returns
        -------
        array of float32, shape (N, F, T)

        Raises
        ------
        ValueError
            If a stimulus is shorter than a window, or the decoder's feature cannot be made again.
        """
        fitted = self._fitted()
        duration = fitted.recipe.segments.duration
        stimuli = stimuli if isinstance(stimuli, np.ndarray) else list(stimuli)
        if not len(stimuli):
            raise ValueError("Candidates need stimuli, got none.")
        if isinstance(stimuli, np.ndarray):
            stimuli = given.without_end(stimuli, to_samples(duration, fitted.recipe.preprocess.sfreq))
            names = [f"candidate {i}" for i in range(len(stimuli))]
            spans: list[tuple[Span, ...]] = [(Span(name, 0.0, duration, 0.0),) for name in names]
            tracks: Tracks = {s[0].key: given.track(s[0], values) for s, values in zip(spans, stimuli, strict=True)}
            fill = 0.0
        else:
            spans, dataset = given.spans_of(stimuli, duration, dataset)
            feature = self._feature()
            fill = feature.fill
            tracks, _ = features.compute_tracks(
                feature,
                {span.key for own in spans for span in own},
                dataset.read_stimulus,
                fingerprint=dataset.stimulus_fingerprint,
                cache=open_cache(cache),
                progress=progress,
            )
        return fitted.targets(spans, tracks, fill)

    def scores(self, signal: Any, candidates: Any, **options: Any) -> np.ndarray:
        """Score windows against candidates (N, F, T), as the loss does; shape (n, N), higher is nearer. Options as in ``predict``."""
        return self._fitted().scores(self.predict(signal, **options), candidates, device=self._device())

    def rank(self, signal: Any, candidates: Any, targets: Any = None, **options: Any) -> np.ndarray:
        """Rank candidates by how near they are to what was estimated from each window; rank 0 is best.

        Parameters
        ----------
        signal
            As in ``predict``, whose options are taken too.
        candidates : array, shape (N, F, T)
            Of ``candidates()``.
        targets : array of int, shape (n,), optional
            Column of each window's own candidate.

        Returns
        -------
        array of int
            Shape (n, N), the rank of every candidate: ``rank(...).argsort(1)`` are the candidates from best to worst. With targets, shape
            (n,), the rank of each window's own candidate. Ties count against a candidate.
        """
        return self._fitted().ranks(self.predict(signal, **options), candidates, targets, device=self._device())

    def score(self, signal: Any = None, targets: Any = None, *, k: int = 10, stimuli: Sequence[Any] | None = None, **options: Any) -> float:
        """Give the top-k accuracy: of the fit's test windows, or of windows with their targets.

        Parameters
        ----------
        signal, targets
            As in ``fit``: windows, and features (n, F, n_frames); the distinct stimuli among them are the candidates.
        stimuli : sequence of length n, optional
            What was heard, by name; None: windows with equal targets heard the same.
        **options
            Of ``predict``.

        Returns
        -------
        float
            A fraction; chance is k / N.
        """
        self._fitted()
        if signal is None:
            if self.scores_ is None or self.test_ is None:
                raise ValueError("There are no test windows: give windows and targets, or fit with a test split.")
            return retrieval.topk_accuracy(retrieval.ranks_from_scores(self.scores_, self.test_.truth).ranks, k)
        if targets is None:
            raise ValueError("Windows are scored with targets (n, F, n_frames).")
        targets = np.asarray(targets)
        names = given.content_ids(targets) if stimuli is None else given.spread_out(stimuli, len(targets), "stimuli")
        first = {name: i for i, name in reversed(list(enumerate(names)))}
        column = {name: j for j, name in enumerate(first)}
        ranks = self.rank(signal, self.candidates(targets[list(first.values())]), [column[name] for name in names], **options)
        return retrieval.topk_accuracy(ranks, k)

    def _device(self) -> torch.device:
        return torch.device(self.device or ("cuda" if torch.cuda.is_available() else "cpu"))

    def _feature(self) -> features.Feature:
        """Make the feature of the training again, and make sure that it is the same."""
        kept = self.config_.get("feature_config")
        if kept is None:
            raise ValueError("This decoder was fitted on targets that were given: give candidates as features too, (N, F, n_frames).")
        name = self.recipe_.feature.name
        if isinstance(self.feature, features.Feature):
            feature = self.feature
        else:
            try:
                naming.check_at_hand("feature", name, features.FEATURES, where="This decoder")
            except RuntimeError as error:
                raise ValueError(f"{error} Or give the feature itself: load(..., feature=).") from None
            try:
                feature = features.build(name, **self.recipe_.feature.options)
            except (ValueError, TypeError) as error:
                raise ValueError(f"The feature {name} cannot be made: {error}. Give it: load(..., feature=).") from error
        now = evaluate.plain(feature.config())
        if now != kept:
            raise ValueError(
                f"The decoder was fitted on the feature {kept}, this one is {now}. Give the one of the training: load(..., feature=)."
            )
        return feature
