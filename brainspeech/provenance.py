"""Where a number comes from: constants, versions, commit, and nothing that differs between two equal runs."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("brainspeech", "torch", "torchaudio", "transformers", "mne", "numpy", "scipy", "accelerate")


def provenance(recipe: Mapping[str, Any], *, repeated_texts: Sequence[str], feature: Mapping[str, Any]) -> dict[str, Any]:
    """Collect what a reader needs to get the same report again.

    Two runs of the same recipe on the same machine give the same dict: it holds no date and no duration.
    """
    return {
        "recipe": dict(recipe),
        "feature": dict(feature),
        "texts_on_two_sides": list(repeated_texts),
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
        "commit": commit(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads",
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def commit() -> str | None:
    """Give the commit of the checkout that the package runs from, with + if it was changed since; None outside a checkout."""
    root = Path(__file__).parent.parent
    if not (root / ".git").exists():
        return None
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=True, timeout=10)
        changed = subprocess.run(["git", "status", "--porcelain"], cwd=root, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "")
