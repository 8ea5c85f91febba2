"""A fitted decoder as a folder: its report, its model card, saved and loaded, pushed to a hub and pulled."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from huggingface_hub import ModelCard, ModelHubMixin

from brainspeech import card, evaluate, features, hub
from brainspeech import report as reports
from brainspeech.parameters import CHOICES, CONFIGS, Parameters
from brainspeech.pretrained import Pretrained, own_classes
from brainspeech.provenance import provenance
from brainspeech.recipe import Recipe
from brainspeech.scaling import Statistics


class Shareable(Parameters, ModelHubMixin, library_name="brainspeech"):
    """What a decoder does besides its verbs: it is written to a folder and read again, here or on a hub.

    It is a ``huggingface_hub.ModelHubMixin`` with ways of its own: a save is replaced in one step, what is read is checked against its
    SHA-256, and only files that nothing runs are sent or fetched.
    """

    feature: Any
    encoder_: torch.nn.Module
    loss_: torch.nn.Module
    recipe_: Recipe
    statistics_: Statistics
    subjects_: tuple[str, ...]
    ch_names_: tuple[str, ...]
    positions_: dict[str, np.ndarray]
    config_: dict[str, Any]
    scores_: np.ndarray | None
    test_: evaluate.TestSet | None
    history_: list[dict[str, Any]]
    warnings_: list[str]

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
        if (Path(folder) / "model" / hub.CONFIG).is_file() and not (Path(folder) / hub.CONFIG).is_file():
            raise FileNotFoundError(
                f"{folder} is a run folder, no saved decoder: {cls.__name__}.from_run({str(folder)!r}) takes its decoder."
            )
        if needed := cls.without_default():
            raise TypeError(
                f"{cls.__name__} is made by load, which knows no {', '.join(needed)}: give every parameter of your own a default."
            )
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
    def from_pretrained(  # type: ignore[override]
        cls,
        pretrained_model_name_or_path: str | os.PathLike,
        *,
        revision: str | None = None,
        token: str | None = None,
        cache_dir: str | os.PathLike | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        feature: features.Feature | None = None,
    ) -> Self:
        """Load a decoder from a folder, or from a hub (``owner/name``): safetensors, JSON and the card are fetched, nothing else.

        Parameters
        ----------
        pretrained_model_name_or_path : path or str
        revision, token, cache_dir, force_download, local_files_only
            Of a hub, as in ``hub.pull``.
        feature : Feature, optional
            As in ``load``.

        Raises
        ------
        FileNotFoundError, PermissionError, ConnectionError
            If there is no such repository, it may not be read, or the hub cannot be reached.
        """
        place = Path(pretrained_model_name_or_path)
        if not place.is_dir():
            if not hub.is_repo_id(str(pretrained_model_name_or_path)):
                raise FileNotFoundError(f"{place} is neither a folder nor a repository (owner/name).")
            place = hub.pull(
                str(pretrained_model_name_or_path),
                revision=revision,
                token=token,
                cache_dir=None if cache_dir is None else Path(cache_dir),
                force_download=force_download,
                local_files_only=local_files_only,
            )
        return cls.load(place, feature=feature)

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        *,
        name: str = "",
        licence: str | None = None,
        push_to_hub: bool = False,
        repo_id: str | None = None,
        **push_options: Any,
    ) -> str | None:
        """Save as ``save`` does; with ``push_to_hub``, also upload to ``repo_id`` with ``push_options``, and give the commit's address."""
        if push_to_hub and repo_id is None:
            raise ValueError("push_to_hub needs repo_id, owner/name.")
        if not push_to_hub and (repo_id is not None or push_options):
            given = [*(["repo_id"] if repo_id is not None else []), *push_options]
            raise TypeError(f"save_pretrained takes {', '.join(given)} only with push_to_hub=True; of a save: name and licence.")
        self.save(save_directory, name=name, licence=licence)
        if repo_id is None:
            return None
        return self.push_to_hub(repo_id, licence=licence, **push_options)

    def push_to_hub(  # type: ignore[override]
        self,
        repo_id: str,
        *,
        private: bool = False,
        token: str | None = None,
        licence: str | None = None,
        commit_message: str = hub.MESSAGE,
        branch: str | None = None,
        create_pr: bool = False,
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
        commit_message, branch, create_pr
            Of the commit, as in ``hub.push``.

        Raises
        ------
        PermissionError, ConnectionError, RuntimeError
            If nobody is logged in, the hub cannot be reached, or it refuses.
        """
        with tempfile.TemporaryDirectory() as temporary:
            folder = self.save(Path(temporary) / "model", name=repo_id.split("/")[-1], licence=licence)
            options: dict[str, Any] = {"commit_message": commit_message, "branch": branch, "create_pr": create_pr}
            return hub.push(folder, repo_id, private=private, token=token, **options)

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """Give ``card`` as huggingface_hub has it."""
        return ModelCard(self.card(*args, **kwargs))

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
