"""Sounds, and a tiny untrained network."""

import numpy as np
import pytest


@pytest.fixture
def noise():
    """Give ``noise(seconds, sfreq, n_rows)``: seeded white noise of shape (n_rows, n_samples)."""

    def make(seconds=1.0, sfreq=16_000, n_rows=1, seed=0):
        return np.random.default_rng(seed).normal(size=(n_rows, round(seconds * sfreq))).astype(np.float32)

    return make


def tiny_config(norm="layer", **changes):
    from transformers import Wav2Vec2Config

    sizes = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32, "conv_dim": (8,) * 7}
    positions = {"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2}
    return Wav2Vec2Config(**{**sizes, **positions, "feat_extract_norm": norm, "do_stable_layer_norm": norm == "layer", **changes})


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """Give ``tiny(norm)``: the folder of a tiny random wav2vec2, saved as a trained one would be."""
    import torch
    from transformers import Wav2Vec2Model

    folders = {}

    def make(norm="layer"):
        if norm not in folders:
            folders[norm] = tmp_path_factory.mktemp(f"tiny-{norm}")
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(7)
                Wav2Vec2Model(tiny_config(norm)).save_pretrained(folders[norm])
        return folders[norm]

    return make
