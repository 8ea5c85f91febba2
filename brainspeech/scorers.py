"""Scores of test windows, put together in other ways than one by one; off unless a recipe names some. Plain numpy, no models.

What may be chosen (a strength, a weight, a width) is chosen on the validation split, by `mean_log_rank`, never on the test split.

Shapes: W windows, N candidates, K variants of the same scores (transforms of the signal, other subjects' layers), L layers, M neighbours;
scores (W, N), finite, higher is nearer. A constant added to a window's scores changes no rank, a factor on all of them neither; where a
formula needs more than that, its function says what it does about the scale.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

import numpy as np
from scipy.optimize import minimize, minimize_scalar
from scipy.special import logsumexp, softmax

SCORERS = ("augment", "layers", "other_subject", "hubness", "context")
STRENGTHS = {
    "augment": (0.0, 1.0, 3.0),  # 3 is RITUAL's
    "other_subject": (0.0, 0.25, 0.5, 1.0),  # 0.5 is SCMoE's
    "hubness": (0.0, 0.25, 0.5, 1.0),
    "context": (0.0, 0.5, 1.0),
}
SLACK = 1e-6  # s; onsets that differ by less are equal

Choice = TypeVar("Choice")


def check_names(names: Iterable[str]) -> tuple[str, ...]:
    """Check names of scorers.

    Raises
    ------
    ValueError
        If one is unknown or stands there twice.
    """
    names = tuple(names)
    unknown = [name for name in names if name not in SCORERS]
    if unknown or len(set(names)) < len(names):
        raise ValueError(f"scorers must be distinct names among {', '.join(SCORERS)}, got {', '.join(map(str, names))}.")
    return names


# ------------------------------------------------------------------------------------------------------------------------------- scales


def standardise(scores: np.ndarray) -> np.ndarray:
    """Give each window's scores mean 0 and standard deviation 1 over the candidates; scores that are all equal become 0.

    Works on (W, N) and on stacks (..., W, N).
    """
    scores = _check(scores)
    centred = scores - scores.mean(-1, keepdims=True)
    spread = centred.std(-1, keepdims=True)
    return centred / np.where(spread > 0, spread, 1)


def find_temperature(scores: np.ndarray, truth: np.ndarray) -> float:
    """Find the number that scores are divided by to be logits: softmax(scores / temperature) is then as sure as it is right.

    It minimises the cross-entropy of the own candidates, on validation scores. Losses leave their scores on scales of their own: those of
    the paper's loss are logits already, cosines are not.

    Parameters
    ----------
    scores : array, shape (W, N)
    truth : array of int, shape (W,)

    Returns
    -------
    float
        Between 1/1000 and 1000 standard deviations of a window's scores: scores that say nothing get the largest.
    """
    scores = _check(scores)
    truth = _check_truth(truth, scores)
    spread = float(np.mean(scores.std(1))) or 1.0
    centred = (scores - scores.mean(1, keepdims=True)).astype(float) / spread
    own = centred[np.arange(len(truth)), truth]

    def cross_entropy(log_scale: float) -> float:
        scale = 10.0**log_scale
        return float(np.mean(logsumexp(scale * centred, axis=1) - scale * own))

    found = minimize_scalar(cross_entropy, bounds=(-3.0, 3.0), method="bounded", options={"xatol": 1e-4})
    return spread / 10.0 ** float(found.x)


# -------------------------------------------------------------------------------------------------------------------------- the scorers


def add_transformed(own: np.ndarray, transformed: np.ndarray, *, strength: float = 1.0) -> np.ndarray:
    """Add the average of the scores that transforms of the same signal get.

    RITUAL (Woo et al. 2024, arXiv:2405.17821): logits of the image plus a times those of one random transform of it, a = 3. Departures:
    the mean of K transforms in place of one, and no plausibility cutoff, which could hide the true candidate. Scores of one encoder by one
    loss have one scale, so nothing is scaled.

    Parameters
    ----------
    own : array, shape (W, N)
    transformed : array, shape (K, W, N)
    strength : float
        a; 0 leaves the scores as they are.
    """
    own, transformed = _check(own), _check_stack(transformed, own.shape)
    return own + own.dtype.type(_not_negative(strength)) * transformed.mean(0)


def contrast_subjects(own: np.ndarray, others: np.ndarray, *, strength: float) -> np.ndarray:
    """Take off what the layers of other subjects would say: (1 + b) own - b mean(others).

    SCMoE (Shi et al. 2024, arXiv:2405.14507): logits by the experts that were chosen against those by experts that were not, b = 0.5. Here
    the experts are subject layers. Departures: the average of several unchosen ones, no plausibility cutoff, one temperature for both.
    Scores of one encoder by one loss have one scale, so nothing is scaled.

    Parameters
    ----------
    own : array, shape (W, N)
    others : array, shape (K, W, N)
    strength : float
        b; 0 leaves the scores as they are.
    """
    own, others = _check(own), _check_stack(others, own.shape)
    b = own.dtype.type(_not_negative(strength))
    return (1 + b) * own - b * others.mean(0)


def take_popularity_off(logits: np.ndarray, *, strength: float) -> np.ndarray:
    """Take off how near a candidate is to everyone: score_ij - a log mean_k exp(score_kj).

    The retrieval form of the contrast of Zhang et al. 2024 (knowledge overshadowing, arXiv:2407.08039), which takes off what is said
    without the condition that matters; with a = 1 a relative of the inverted softmax (Smith et al. 2017, arXiv:1702.03859). The formula was
    put together from the paper's abstract and secondary texts; no fidelity to its code is claimed.

    It is transductive: k runs over all test windows, so a window's ranks depend on which others are tested with it. A decoder that gets
    one window at a time cannot do this, and the result is no measure of one.

    Parameters
    ----------
    logits : array, shape (W, N)
        Scores divided by `find_temperature`: the exponential needs that scale.
    strength : float
        a; 0 leaves the scores as they are.
    """
    logits = _check(logits)
    popularity = logsumexp(logits, axis=0) - np.log(len(logits))
    return logits - logits.dtype.type(_not_negative(strength)) * popularity.astype(logits.dtype)


def fuse(stack: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Add up the scores of several layers, each standardised, with weights.

    After LOL ("Lower Layer Matters", 2024, arXiv:2408.08769), which adds the contrasts of a lower and the final layer.
    Departures: the scores of the layers themselves, not their contrasts with an amateur; any number of layers; weights from
    `fusion_weights`. The paper's constants are not known to us; no fidelity is claimed. Layers have scales of their own, so each window's
    scores are standardised layer by layer (`standardise`).

    Parameters
    ----------
    stack : array, shape (L, W, N)
    weights : array, shape (L,)
    """
    stack, weights = _check(stack, ndim=3), np.asarray(weights, float)
    if weights.shape != (len(stack),) or not np.isfinite(weights).all():
        raise ValueError(f"Expected a finite weight for each of {len(stack)} layers, got shape {weights.shape}: {weights}.")
    return np.einsum("l,lwn->wn", weights.astype(stack.dtype), standardise(stack))


def fusion_weights(stack: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Find weights of layers on the validation split: not negative, with sum 1.

    They minimise the cross-entropy of the own candidates under softmax(fuse(stack, weights)), which is convex; only then are they divided
    by their sum, which changes no rank. Where no layer says anything all weigh the same.

    Parameters
    ----------
    stack : array, shape (L, W, N)
    truth : array of int, shape (W,)

    Returns
    -------
    array, shape (L,)
    """
    stack = _check(stack, ndim=3)
    truth = _check_truth(truth, stack[0])
    layers = standardise(stack).astype(float)
    own = layers[:, np.arange(len(truth)), truth]  # (L, W)

    def cross_entropy(weights: np.ndarray) -> tuple[float, np.ndarray]:
        logits = np.einsum("l,lwn->wn", weights, layers)
        expected = np.einsum("wn,lwn->lw", softmax(logits, axis=1), layers)
        return float(np.mean(logsumexp(logits, axis=1) - weights @ own)), (expected - own).mean(1)

    start = np.full(len(stack), 1 / len(stack))
    found = minimize(cross_entropy, start, jac=True, method="L-BFGS-B", bounds=[(0.0, 100.0)] * len(stack))
    total = found.x.sum()
    return found.x / total if total > 1e-6 else start


# ------------------------------------------------------------------------------------------------------------------------------ context


def find_neighbours(onset: np.ndarray, group: np.ndarray, *, duration: float, width: float) -> np.ndarray:
    """Find windows before and after each window, one after the other without overlap, as far as `width` seconds away.

    The next one is the first that begins when the last has ended. Windows that overlap say the same twice, and make it possible to see
    from the pattern of overlaps alone where a window belongs.

    Parameters
    ----------
    onset : array, shape (W,)
        Seconds in the recording.
    group : array of int, shape (W,)
        Only windows of one group are neighbours: those of one recording and block.
    duration, width : float
        Of a window; largest difference of onsets. Seconds.

    Returns
    -------
    array of int, shape (W, M)
        Indices of windows; -1 where there is none. M = 2 floor(width / duration).
    """
    onset, group = np.asarray(onset, float), np.asarray(group)
    if not (onset.shape == group.shape and onset.ndim == 1):
        raise ValueError(f"Expected onset and group of one shape (W,), got {onset.shape} and {group.shape}.")
    if not duration > 0 or not width >= 0:
        raise ValueError(f"Expected duration > 0 s and width >= 0 s, got {duration} and {width}.")
    steps = int(width / duration + SLACK)
    found = np.full((len(onset), 2 * steps), -1)
    for members in _groups(group):
        order = members[np.argsort(onset[members], kind="stable")]
        time = onset[order]
        for side, sign in enumerate((-1, 1)):
            here = np.arange(len(order))
            for step in range(steps):
                if sign > 0:
                    here = np.where(here < 0, -1, np.searchsorted(time, time[here] + duration - SLACK))
                    here = np.where(here < len(order), here, -1)
                else:
                    here = np.where(here < 0, -1, np.searchsorted(time, time[here] - duration + SLACK, side="right") - 1)
                near = (here >= 0) & (np.abs(time[here] - time) <= width + SLACK)
                found[order[near], 2 * step + side] = order[here[near]]
                here = np.where(near, here, -1)
    return found


def shift_candidates(place: np.ndarray, stretch: np.ndarray, offset: float, *, tolerance: float) -> np.ndarray:
    """Find for each candidate the one that begins `offset` seconds later in the same stretch of audio.

    Parameters
    ----------
    place : array, shape (N,)
        Seconds in the audio.
    stretch : array of int, shape (N,)
        Only candidates of one stretch stand in for each other: those of one audio and block.
    tolerance : float
        The nearest one counts if it is at most so many seconds off.

    Returns
    -------
    array of int, shape (N,)
        -1 where there is none.
    """
    place, stretch = np.asarray(place, float), np.asarray(stretch)
    # On one axis, stretches so far apart that a shift never leads from one to another.
    gap = np.ptp(place) + 2 * (abs(offset) + tolerance) + 1
    at = np.unique(stretch, return_inverse=True)[1] * gap + (place - place.min())
    order = np.argsort(at, kind="stable")
    wanted = at + offset
    right = np.clip(np.searchsorted(at[order], wanted), 0, len(at) - 1)
    left = np.maximum(right - 1, 0)
    away = np.abs(at[order[left]] - wanted), np.abs(at[order[right]] - wanted)
    nearest = np.where(away[0] <= away[1], order[left], order[right])
    return np.where(np.minimum(*away) <= tolerance + SLACK, nearest, -1)


def pool_context(
    scores: np.ndarray,
    neighbours: np.ndarray,
    *,
    onset: np.ndarray,
    place: np.ndarray,
    stretch: np.ndarray,
    weight: float,
    tolerance: float,
) -> np.ndarray:
    """Add the evidence of neighbouring windows for the candidate that lies at the same distance in the same audio.

    Whoever heard c in this window heard what follows c in the next one. With z the standardised scores, d the difference of two windows'
    onsets and c + d the candidate that begins d after c: pooled_wc = (z_wc + b sum_v z_v,c+d(v)) / sqrt(1 + b^2 n_wc), where n_wc
    neighbours v have such a candidate (Stouffer's weighted sum of z values, 1949, over neighbours). The root makes all candidates
    equally variable where nothing is known; without it those at the edges of a stretch, with fewer terms, would rarely be among the best,
    and a window's own candidate, which has all its terms, too often.

    What goes in besides scores is when windows were cut and where candidates lie, both known without the answer. Our own; scores are
    standardised so that windows weigh the same.

    Parameters
    ----------
    scores : array, shape (W, N)
    neighbours : array of int, shape (W, M)
        From `find_neighbours`; -1 is none.
    onset : array, shape (W,)
        Of the windows, seconds in the recording.
    place, stretch : array, shape (N,)
        Of the candidates: seconds in the audio; which stretch of which audio.
    weight : float
        b; 0 leaves the ranks as they are.
    tolerance : float
        Seconds by which c + d may be missed; see `shift_candidates`.
    """
    z = standardise(_check(scores))
    onset, neighbours = np.asarray(onset, float), np.asarray(neighbours)
    shapes = neighbours.shape[:1], onset.shape, np.shape(place), np.shape(stretch)
    if neighbours.ndim != 2 or shapes != (z.shape[:1], z.shape[:1], z.shape[1:], z.shape[1:]):
        raise ValueError(
            f"Scores {z.shape} need neighbours (W, M), onset (W,), place and stretch (N,), got {neighbours.shape}, {onset.shape}, "
            f"{np.shape(place)} and {np.shape(stretch)}."
        )
    b = z.dtype.type(_not_negative(weight))
    total, terms = z.copy(), np.zeros(z.shape, np.int16)
    for mates in neighbours.T if b else ():
        here = np.flatnonzero(mates >= 0)
        distances, which = np.unique(np.round(onset[mates[here]] - onset[here], 6), return_inverse=True)
        for k, distance in enumerate(distances):
            later = shift_candidates(place, stretch, distance, tolerance=tolerance)
            columns, windows = np.flatnonzero(later >= 0), here[which == k]
            total[np.ix_(windows, columns)] += b * z[np.ix_(mates[windows], later[columns])]
            terms[np.ix_(windows, columns)] += 1
    return total / np.sqrt(1 + b * b * terms).astype(z.dtype)


# ----------------------------------------------------------------------------------------------------------------------------- choosing


def mean_log_rank(scores: np.ndarray, truth: np.ndarray) -> float:
    """Give the mean of log(1 + rank) of the own candidates, ties against them; lower is better.

    It does not depend on the scale of scores, and unlike a top-k accuracy it moves with every window.
    """
    scores = _check(scores)
    truth = _check_truth(truth, scores)
    own = scores[np.arange(len(truth)), truth][:, None]
    return float(np.mean(np.log((scores >= own).sum(1))))


def choose(options: Iterable[tuple[Choice, np.ndarray]], truth: np.ndarray) -> Choice:
    """Choose among (setting, validation scores) the setting with the lowest `mean_log_rank`; of equal ones the first."""
    best: tuple[float, Choice] | None = None
    for setting, scores in options:
        value = mean_log_rank(scores, truth)
        if best is None or value < best[0] - 1e-9:
            best = value, setting
    if best is None:
        raise ValueError("There is nothing to choose from.")
    return best[1]


def _groups(labels: np.ndarray) -> list[np.ndarray]:
    """Give the indices of each label."""
    order = np.argsort(labels, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(labels[order])) + 1) if len(order) else []


def _check(scores: np.ndarray, *, ndim: int | None = None) -> np.ndarray:
    scores = np.asarray(scores)
    if scores.ndim < 2 or (ndim is not None and scores.ndim != ndim) or not np.issubdtype(scores.dtype, np.floating):
        raise ValueError(f"Expected scores as floats of shape {'(L, W, N)' if ndim == 3 else '(W, N)'}, got {scores.dtype} {scores.shape}.")
    if not scores.size:
        raise ValueError(f"Expected scores of at least one window and candidate, got shape {scores.shape}.")
    if not np.isfinite(scores).all():
        n = int((~np.isfinite(scores)).any(-1).sum())
        raise ValueError(
            f"Scores of {n} windows are not finite. Look at the encoder (its loss, its learning rate), or leave evaluate.scorers empty."
        )
    return scores


def _check_stack(stack: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    stack = _check(stack, ndim=3)
    if stack.shape[1:] != shape:
        raise ValueError(f"Expected a stack of scores of shape (K, {shape[0]}, {shape[1]}), got {stack.shape}.")
    return stack


def _check_truth(truth: np.ndarray, scores: np.ndarray) -> np.ndarray:
    truth = np.asarray(truth)
    if truth.shape != scores.shape[:1] or not np.issubdtype(truth.dtype, np.integer) or truth.min() < 0 or truth.max() >= scores.shape[1]:
        raise ValueError(f"Expected a column of scores {scores.shape} for each window, got {truth.dtype} {truth.shape}.")
    return truth


def _not_negative(strength: float) -> float:
    if not (np.isfinite(strength) and strength >= 0):
        raise ValueError(f"A strength or weight must be a number of 0 or more, got {strength}.")
    return float(strength)
