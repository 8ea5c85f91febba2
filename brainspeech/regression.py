"""How far features of the stimuli predict how well these are decoded: cross-validated ridge regression, tested against exchanged blocks.

Plain arrays: nothing here knows what was decoded or what the features are. Shapes: N stimuli in order of time, D features, R draws.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from brainspeech import statistics

ALPHAS = np.logspace(-1, 6, 15)
FOLDS = 5
FEWEST_BLOCKS = 5  # of 5 blocks there are 120 orders: with fewer, no p would be below 0.05
TOLERANCE = 1e-9


@dataclass(frozen=True)
class Relation:
    """How a set of features relates to the target.

    Parameters
    ----------
    r : float
        Correlation of predicted and observed values of held-out stimuli.
    low, high : float
        Central 95 % of the same correlation when blocks are exchanged.
    p : float
        One-sided: draws that reach ``r``, (1 + draws) / (1 + R).
    p_holm : float
        The same, corrected by Holm for the number of sets that were tested.
    n_features : int
        D.
    """

    r: float
    low: float
    high: float
    p: float
    p_holm: float
    n_features: int


def relate(
    target: np.ndarray,
    features: Mapping[str, np.ndarray],
    blocks: np.ndarray,
    *,
    n_permutations: int = 1000,
    seed: int = 0,
    progress: bool = False,
) -> dict[str, Relation]:
    """Predict a target from each set of features, and test every set.

    Features are scaled to standard deviation 1 and the penalty is chosen by leave-one-out (``RidgeCV``), both on the training folds. A
    block is in one fold. Exchanging blocks keeps neighbours neighbours, so that the null distribution has the autocorrelation of
    overlapping windows. Folds, and the order in which blocks are exchanged, are the same for all sets.

    Parameters
    ----------
    target : array, shape (N,)
        Stimuli in order of time.
    features : mapping of str to array, shape (N, D)
    blocks : array of int, shape (N,)
        Neighbours of a block stand together.
    n_permutations : int
        R.

    Raises
    ------
    ValueError
        If there are fewer than five blocks, or shapes disagree, or a value is not finite.
    """
    target, blocks = np.asarray(target, float), np.unique(blocks, return_inverse=True)[1]
    n_blocks = int(blocks.max(initial=-1)) + 1
    if n_blocks < FEWEST_BLOCKS:
        raise ValueError(f"A regression across blocks needs at least {FEWEST_BLOCKS} blocks, got {n_blocks}.")
    for name, values in features.items():
        if values.shape[0] != len(target) or not np.isfinite(values).all() or not np.isfinite(target).all():
            raise ValueError(f"{name}: expected finite features of {len(target)} stimuli and a finite target, got shape {values.shape}.")
    folds = split(blocks)
    draws = exchanged_blocks(blocks, n_permutations, seed=seed)
    targets = np.concatenate([target[None], target[draws]]).T  # (N, 1 + R)
    found = {}
    for name, values in tqdm(features.items(), desc="what decoding relates to", unit="set", disable=not progress):
        r = correlations(held_out(values, targets, folds), targets, folds)
        low, high = np.quantile(r[1:], [0.025, 0.975])
        found[name] = (float(r[0]), float(low), float(high), float((1 + (r[1:] >= r[0] - TOLERANCE).sum()) / len(r)))
    corrected = statistics.holm([p for *_, p in found.values()])
    return {name: Relation(*found[name], float(p), features[name].shape[1]) for name, p in zip(found, corrected, strict=True)}


def split(blocks: np.ndarray) -> np.ndarray:
    """Give each stimulus the fold it is held out in, whole blocks together, folds of about equal size; shape (N,)."""
    from sklearn.model_selection import GroupKFold  # a second that a run waits for only when a recipe asks for a regression

    folds = np.empty(len(blocks), int)
    splitter = GroupKFold(min(FOLDS, len(np.unique(blocks))))
    for fold, (_, held) in enumerate(splitter.split(np.empty((len(blocks), 1)), groups=blocks)):
        folds[held] = fold
    return folds


def held_out(features: np.ndarray, targets: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """Predict every target (N, M) of every stimulus by a ridge regression on the other folds; shape (N, M)."""
    from sklearn.linear_model import RidgeCV
    from sklearn.preprocessing import StandardScaler

    out = np.zeros_like(targets)
    for fold in np.unique(folds):
        held = folds == fold
        scaler = StandardScaler().fit(features[~held])
        model = RidgeCV(alphas=ALPHAS, alpha_per_target=True).fit(scaler.transform(features[~held]), targets[~held])
        out[held] = model.predict(scaler.transform(features[held])).reshape(held.sum(), -1)
    return out


def correlations(predicted: np.ndarray, observed: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """Correlate the columns of two (N, M) arrays, each fold around its own mean; 0 where one does not vary; shape (M,).

    The mean of the training folds is low where that of the held-out fold is high: across folds a prediction that knows nothing would
    correlate negatively.
    """
    p, o = _centred(predicted, folds), _centred(observed, folds)
    scale = np.sqrt((p**2).sum(0) * (o**2).sum(0))
    return np.divide((p * o).sum(0), scale, out=np.zeros_like(scale), where=scale > TOLERANCE)


def _centred(values: np.ndarray, folds: np.ndarray) -> np.ndarray:
    out = values.astype(float)
    for fold in np.unique(folds):
        out[folds == fold] -= out[folds == fold].mean(0)
    return out


def exchanged_blocks(blocks: np.ndarray, n: int, *, seed: int = 0) -> np.ndarray:
    """Draw stand-ins for each stimulus, (n, N): each block takes the stimuli of another one, in order, stretched to its own length.

    Of blocks of equal length every stimulus is used once.

    Parameters
    ----------
    blocks : array of int, shape (N,)
        From 0 up to the number of blocks - 1.
    """
    rng = np.random.default_rng(seed)
    order = np.argsort(blocks, kind="stable")
    sizes = np.bincount(blocks)
    starts = np.cumsum(sizes) - sizes
    place = np.empty(len(blocks), int)
    place[order] = np.arange(len(blocks)) - starts[blocks[order]]
    out = np.empty((n, len(blocks)), int)
    for draw in out:
        source = rng.permutation(len(sizes))[blocks]
        draw[:] = order[starts[source] + place * sizes[source] // sizes[blocks]]
    return out
