"""What a fit may be asked for."""

import json
from dataclasses import asdict

import numpy as np
import pytest

from brainspeech.settings import TrainConfig


@pytest.mark.parametrize(
    "asked",
    [
        {"precision": "fp8"},
        {"batch_size": 1},
        {"batch_size": 16.0},
        {"batch_size": "16"},
        {"max_epochs": 0},
        {"max_epochs": 2.5},
        {"max_epochs": True},
        {"patience": 0},
        {"patience": None},
        {"lr": 0.0},
        {"lr": "3e-4"},
        {"lr": np.inf},
        {"weight_decay": -1.0},
        {"weight_decay": np.inf},
        {"seed": -1},
        {"seed": 2**63},
        {"sampler": "x"},
        {"views": 2},
        {"views": 1.5, "sampler": "grouped"},
        {"resident": "x"},
        {"checkpoint_minutes": -1.0},
        {"checkpoint_minutes": "x"},
        {"checkpoint_minutes": np.nan},
        {"tf32": "no"},
        {"compile": 1},
        {"synchronise": None},
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_by_name(asked):
    with pytest.raises(ValueError, match=rf"^({'|'.join(asked)}|lr must be positive and weight_decay) .*, got "):
        TrainConfig(**asked)


def test_numbers_of_numpy_become_python_numbers():
    """A checkpoint is JSON."""
    config = TrainConfig(batch_size=np.int64(32), lr=np.float32(0.5), seed=np.uint8(7), tf32=np.bool_(False))
    assert json.loads(json.dumps(asdict(config)))["seed"] == 7
    assert config == TrainConfig(batch_size=32, lr=0.5, seed=7, tf32=False)
    assert config.tf32 is False
