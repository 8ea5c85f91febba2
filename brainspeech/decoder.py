"""The decoder as one object in the manner of scikit-learn: fit, predict, score, rank, save, load, push and pull.

    from brainspeech import SpeechDecoder

    decoder = SpeechDecoder.from_recipe("demo")
    decoder.fit(dataset)
    decoder.score()  # top-10 accuracy on the test windows

Everything it does is done by the rooms that a recipe's run goes through: the same segments, batches, training and scores. What a saved
folder can do, without a fit, is in ``pretrained``.

Shapes: n windows, N candidates, C channels, F features, G features of an estimate (F but with a target encoder), T times after the lag is
cut; T_w samples of a whole window.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from brainspeech import card, datasets, evaluate, features, flow, given, hub, naming, retrieval, rows, segments
from brainspeech import recipe as recipes
from brainspeech import report as reports
from brainspeech.batches import BatchConfig
from brainspeech.cache import Cache
from brainspeech.parameters import CHOICES, CONFIGS, Parameters, as_choice
from brainspeech.preprocess import PreprocessConfig
from brainspeech.pretrained import Pretrained, Tracks, own_classes
from brainspeech.provenance import provenance
from brainspeech.recipe import Choice, Recipe
from brainspeech.records import SPLITS, Segment, Signal, Span
from brainspeech.segments import SegmentConfig
from brainspeech.timing import to_samples
from brainspeech.train import TrainConfig

DEFAULTS = Recipe(name="decoder", title="", dataset=Choice("arrays"))


class SpeechDecoder(Parameters):
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

    scores_: np.ndarray | None
    test_: evaluate.TestSet | None
    history_: list[dict[str, Any]]
    warnings_: list[str]

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
            Windows are in volt or tesla, preprocessed already; at ``preprocess.sfreq``, or resampled to it.
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
            return self._fit_dataset(data, _cache(cache), subjects, out, progress)
        if isinstance(data, Sequence) and data and isinstance(data[0], Segment):
            if signals is None or tracks is None:
                raise ValueError("Segments are fitted with signals= (by recording) and tracks= (by Span.key).")
            return self._fit_segments(self._recipe(), data, signals, tracks, fill, out=out, progress=progress)
        if targets is None:
            raise ValueError(f"Expected a Dataset, segments, or windows with targets, got {type(data).__name__} and no targets.")
        targets = np.asarray(targets)
        if targets.dtype.kind not in "fiu" or not np.isfinite(targets).all():
            raise ValueError(f"Targets must be finite numbers, (n, F, n_frames), got {targets.dtype} {targets.shape}; are there NaN?")
        recipe = self._recipe(feature=Choice("precomputed"))
        rate = recipe.preprocess.sfreq
        options: dict[str, Any] = {"ch_types": ch_types, "from_sfreq": sfreq, "montage": recipe.preprocess.positions}
        windows = given.read_windows(data, sfreq=rate, n_times=None, ch_names=ch_names, **options)
        n_expected = to_samples(recipe.segments.duration, rate)
        if hasattr(data, "info") and windows.data.shape[2] == n_expected + 1:  # MNE counts both ends
            windows = dataclasses.replace(windows, data=np.ascontiguousarray(windows.data[..., :n_expected]))
        if positions is not None:
            windows = dataclasses.replace(windows, positions=np.asarray(positions, dtype=np.float32))
        length = round(windows.data.shape[2] / rate, 6)
        recipe = dataclasses.replace(recipe, segments=dataclasses.replace(recipe.segments, tmin=0.0, tmax=length, sfreq=rate))
        options = {"subject": subject, "stimuli": stimuli, "blocks": blocks}
        segs, signals, tracks = given.with_targets(windows, targets, recipe.segments, **options)
        return self._fit_segments(recipe, segs, signals, tracks, 0.0, out=out, progress=progress)

    def _fit_dataset(self, dataset: datasets.Dataset, cache: Cache, subjects: str, out: Any, progress: bool) -> Self:
        """Go the way of ``flow.run`` up to the fit."""
        recipe = self._recipe(name=dataset.name or "decoder", dataset=Choice(dataset.name), load=lambda root=None, **_: dataset)
        recipe = dataclasses.replace(recipe, subjects=subjects)
        own = self.feature if isinstance(self.feature, features.Feature) else None
        known = recipe if own is None else dataclasses.replace(recipe, feature=Choice("precomputed"))
        recipes.check(known)
        prepared = flow.prepare(known, None, cache, progress=progress)
        feature = own or prepared.feature
        fold = flow.segment(recipe, prepared)[0]
        leaks = segments.audit(fold.segments, blocks=fold.blocks).errors
        if leaks:
            raise RuntimeError(f"The split leaks in {len(leaks)} places, nothing was trained: {'; '.join(leaks[:3])}")
        segs = features.window_spans(fold.segments) if recipe.context == "window" else fold.segments
        tracks, _ = features.compute_tracks(
            feature,
            features.intervals(segs, recipe.context),
            dataset.read_stimulus,
            fingerprint=dataset.stimulus_fingerprint,
            cache=cache,
            progress=progress,
        )
        said = [*dataset.notes, *fold.warnings]
        return self._fit_segments(
            recipe, segs, prepared.signals, tracks, feature.fill, feature=feature.config(), said=said, out=out, progress=progress
        )

    def _fit_segments(
        self,
        recipe: Recipe,
        segs: Sequence[Segment],
        signals: Mapping[str, Signal],
        tracks: Tracks,
        fill: float,
        *,
        feature: Mapping[str, Any] | None = None,
        said: Iterable[str] = (),
        out: str | os.PathLike | None,
        progress: bool,
    ) -> Self:
        """Fit the row ``encoder`` of a recipe, and take what it saved."""
        counts = {split: sum(s.split == split for s in segs) for split in SPLITS}
        if not counts["train"] or not counts["valid"]:
            raise ValueError(f"A fit needs training and validation windows, got {counts}. Give more stimuli, other ratios or another seed.")
        tested = [s for s in segs if s.split == "test"]
        # The fit scores its test windows; without any it scores those of the validation, which is nobody's business.
        stand_in = [] if tested else [dataclasses.replace(s, split="test") for s in segs if s.split == "valid"]
        test = evaluate.TestSet.from_segments(tested or stand_in)
        fitter = rows.Fitter(recipe, [*segs, *stand_in], {"": test.candidates}, signals=signals, tracks=tracks, fill=fill)
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary if out is None else out)
            fitted = dict(fitter.rows(folder, seed=recipe.seeds[0], progress=progress))["encoder"]
            self._take(folder / "model", feature=feature)
        if tested:
            self.scores_, self.test_ = fitted.scores, test
        self.history_, self.warnings_ = fitted.history, [*said, *fitter.warnings()]
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
        report = flow.run(recipe, out=out, cache=_cache(cache), progress=progress)
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
            array of shape (N, F, n_frames): features, each from the first to the last sample of a window.
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
                cache=_cache(cache),
                progress=progress,
            )
        return fitted.targets(spans, tracks, fill)

    def scores(self, signal: Any, candidates: Any, **options: Any) -> np.ndarray:
        """Score windows against candidates (N, F, T), as the loss does; shape (n, N), higher is nearer. Options as in ``predict``."""
        return self._fitted().scores(self.predict(signal, **options), candidates, device=self._device())

    def rank(self, signal: Any, candidates: Any, targets: Any, **options: Any) -> np.ndarray:
        """Rank each window's own candidate among all; shape (n,), rank 0 is best.

        Parameters
        ----------
        signal
            As in ``predict``, whose options are taken too.
        candidates : array, shape (N, F, T)
            Of ``candidates()``.
        targets : array of int, shape (n,)
            Column of each window's own candidate.
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

    def report(self, config: evaluate.EvaluateConfig | None = None) -> evaluate.RetrievalReport:
        """Evaluate the test windows of the fit: accuracies with intervals. References and controls come with ``run``."""
        self._fitted()
        if self.scores_ is None or self.test_ is None:
            raise ValueError("There are no test windows to report on: fit with a test split, or run() for a whole report.")
        feature = self.config_.get("feature_config") or {}
        where = provenance(self.recipe_.to_dict(), repeated_texts=[], feature=feature)
        seeds = list(self.recipe_.seeds)
        said = self.warnings_
        return evaluate.evaluate({"encoder": [self.scores_]}, self.test_, config=config, warnings=said, provenance=where, seeds=seeds)

    # ------------------------------------------------------------------------------------------------------------------ save and load

    def save(self, folder: str | os.PathLike, *, name: str = "", licence: str | None = None) -> Path:
        """Save the decoder as one folder: weights (safetensors), constants and statistics (JSON), a model card.

        Parameters
        ----------
        folder : path
            New, or with an earlier save, which is replaced in one step.
        name, licence : str, optional
            For the card: of the model, and of its weights (``cc-by-4.0``).
        """
        self._fitted()
        if "report" not in self.config_ and self.scores_ is not None:
            measured = self.report()
            self.config_["report"] = card.condense(measured.to_dict(), alarms=measured.alarms)
        self.config_["classes"] = own_classes(self.config_)
        config = {key: value for key, value in self.config_.items() if key not in hub.RESERVED}
        return self._fitted().save(Path(folder), config=config, card=self.card(name=name, licence=licence))

    @classmethod
    def load(cls, folder: str | os.PathLike, *, feature: features.Feature | None = None) -> Self:
        """Load what ``save`` wrote; nothing of the training data is needed.

        Parameters
        ----------
        feature : Feature, optional
            Where the decoder was fitted with a feature object that no name makes again.

        Raises
        ------
        FileNotFoundError, RuntimeError
            If a file is missing or damaged, the folder holds a module that is no decoder, or its model, loss or target encoder is a class
            of somebody's own whose module was not imported: a folder holds no code and imports none.
        """
        decoder = cls()._take(Path(folder))
        recipe = decoder.recipe_
        values = {name: getattr(recipe, name) for name in (*CHOICES, "context", *CONFIGS)}
        decoder.set_params(**values, seed=recipe.seeds[0])
        if feature is not None:
            decoder.feature = feature
        return decoder

    @classmethod
    def from_run(cls, run: str | os.PathLike) -> Self:
        """Take the decoder of a run folder (``brainspeech run``): the encoder of its first fold and seed, and its report."""
        folder = Path(run)
        if not (folder / "model" / hub.CONFIG).is_file():
            raise FileNotFoundError(
                f"{folder} holds no fitted encoder (model/{hub.CONFIG}). Go on with it: brainspeech run RECIPE --out {folder}"
            )
        decoder = cls.load(folder / "model")
        decoder._take_run(folder)
        return decoder

    @classmethod
    def from_pretrained(
        cls,
        name: str | os.PathLike,
        *,
        revision: str | None = None,
        token: str | None = None,
        cache_dir: str | os.PathLike | None = None,
        feature: features.Feature | None = None,
    ) -> Self:
        """Load a decoder from a folder, or from a hub (``owner/name``): safetensors, JSON and the card are fetched, nothing else.

        Raises
        ------
        FileNotFoundError, PermissionError, ConnectionError
            If there is no such repository, it may not be read, or the hub cannot be reached.
        """
        if not Path(name).is_dir():
            if not hub.is_repo_id(str(name)):
                raise FileNotFoundError(f"{name} is neither a folder nor a repository (owner/name).")
            name = hub.pull(str(name), revision=revision, token=token, cache_dir=None if cache_dir is None else Path(cache_dir))
        return cls.load(name, feature=feature)

    def push_to_hub(
        self, repo_id: str, *, private: bool = False, token: str | None = None, licence: str | None = None, message: str = ""
    ) -> str:
        """Upload the decoder to a hub as one commit, and give its address.

        Parameters
        ----------
        repo_id : str
            ``owner/name``; made if there is none.
        private : bool
            Whether a repository that is made is private.
        token : str, optional
            None: that of ``hf auth login``.
        licence : str, optional
            Of the weights, for the card (``cc-by-4.0``).

        Raises
        ------
        PermissionError, ConnectionError, RuntimeError
            If nobody is logged in, the hub cannot be reached, or it refuses.
        """
        with tempfile.TemporaryDirectory() as temporary:
            folder = self.save(Path(temporary) / "model", name=repo_id.split("/")[-1], licence=licence)
            return hub.push(folder, repo_id, private=private, token=token, message=message or "Upload with brainspeech")

    def card(self, *, name: str = "", licence: str | None = None) -> str:
        """Write the model card: data, licence, accuracies with intervals, constants, limits."""
        self._fitted()
        return card.model_card(self.config_, self.config_.get("report"), name=name, licence=licence)

    def _take(self, folder: Path, *, feature: Mapping[str, Any] | None = None) -> Self:
        """Become what a saved folder holds."""
        self._pretrained = found = Pretrained.load(folder)
        self.config_ = dict(found.config) | ({} if feature is None else {"feature_config": evaluate.plain(feature)})
        self.encoder_, self.loss_, self.recipe_, self.statistics_ = found.encoder, found.loss, found.recipe, found.statistics
        self.subjects_, self.ch_names_, self.positions_ = found.subjects, found.ch_names, dict(found.positions)
        self.scores_, self.test_ = None, None
        self.history_, self.warnings_ = [], []
        return self

    def _take_run(self, run: Path) -> None:
        """Become the encoder of a run, and keep what its report says."""
        self._take(run / "model")
        if (run / "report.json").is_file():
            found = reports.load(run)
            self.config_["report"] = card.condense(found.to_dict(), alarms=found.alarms)
            self.config_["feature_config"] = found.provenance.get("feature")
            self.warnings_ = list(found.warnings)

    def _fitted(self) -> Pretrained:
        self.check_fitted()
        return self._pretrained

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


# ------------------------------------------------------------------------------------------------------------------------------ parts


def _cache(cache: Cache | str | os.PathLike | None) -> Cache:
    if isinstance(cache, Cache):
        return cache
    return Cache(cache or os.environ.get("BRAINSPEECH_CACHE") or Path.home() / ".cache" / "brainspeech")
