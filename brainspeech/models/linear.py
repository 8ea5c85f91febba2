"""Linear decoders: what loss and depth are measured against.

Shapes: B segments, C channels, L lags, F features, K reduced features, T times, S subjects. Lags are in samples: the estimate at time t
is made from signal[..., t + lag]. They are relative to the alignment of signal and target, so that with a brain 18 samples behind the
sound (150 ms at 120 Hz) lags -18 to 42 are 0 to 500 ms after the sound.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from brainspeech import similarity
from brainspeech.host import Known

from .base import Encoder, check_inputs, check_subjects, silence_absent
from .layers import SubjectLayer

# 0 to 500 ms after the sound in steps of 25 ms, at 120 Hz with the paper's alignment of 150 ms.
DEFAULT_LAGS = tuple(range(-18, 43, 3))
DEFAULT_ALPHAS = tuple(10.0**power for power in range(-3, 7))

Batches = Callable[[], Iterable[tuple[Tensor, Tensor, Tensor]]]


def check_lags(lags: Sequence[int]) -> tuple[list[int], int]:
    """Return the lags as a list and their step; ValueError unless they rise in equal steps."""
    lags = [int(lag) for lag in lags]
    step = lags[1] - lags[0] if len(lags) > 1 else 1
    if not lags or step < 1 or lags != list(range(lags[0], lags[-1] + 1, step)):
        raise ValueError(f"Lags must rise in equal steps of whole samples, such as range(0, 61, 3), got {lags}.")
    return lags, step


def _check_channels(signal: Tensor, n_channels: int) -> None:
    if signal.shape[1] != n_channels:
        raise ValueError(f"A linear decoder has a weight for each of its {n_channels} channels, got a signal with {signal.shape[1]}.")


class LinearClip(Encoder):
    """Filter the channels of each subject linearly; meant to be trained with the same loss as a deep encoder.

    The control for depth: no hidden layer, no nonlinearity, no norm. A full filter per subject would have C x L x F weights (4.5 million
    for 208 channels, 21 lags and 1024 features), so it is factored as the deep encoder is: a matrix W_s (C, rank) for each
    subject, then one FIR filter V (rank, L -> F) for all:

        estimate[f, t] = bias[f] + sum_{r, l} V[f, r, l] sum_c W_s[c, r] signal[c, t + l]

    Positions are not used; masked channels count as 0, and so does the signal beyond the window. A subject that was not in the training
    set (-1) gets the average of all W_s.

    Parameters
    ----------
    n_subjects, n_features, n_channels : int
    lags : sequence of int
        Samples, in equal steps.
    rank : int
        Components that each subject's channels are mixed to.
    """

    def __init__(self, n_subjects: int, n_features: int, *, n_channels: int, lags: Sequence[int] = DEFAULT_LAGS, rank: int = 32) -> None:
        super().__init__()
        self.n_channels = n_channels
        self.lags, step = check_lags(lags)
        self.mix = SubjectLayer(n_subjects, n_channels, rank)
        self.filter = nn.Conv1d(rank, n_features, len(self.lags), dilation=step)

    def forward(
        self, signal: Tensor, positions: Tensor, subject: Tensor, channel_mask: Tensor | None = None, known: Known | None = None
    ) -> Tensor:
        """Estimate the features (B, F, T); shapes as in ``Encoder``. ValueError if they disagree or a subject is not in the table."""
        check_inputs(signal, positions, subject, channel_mask)
        _check_channels(signal, self.n_channels)
        components = self.mix(silence_absent(signal, channel_mask), subject, known)
        return self.filter(functional.pad(components, (-self.lags[0], self.lags[-1])))


class Ridge(nn.Module):
    """Reconstruct the reduced target from each subject's lagged channels, by ridge regression; not trained by gradients.

    The targets are reduced to `n_components` principal components of the training targets (only centred where there are no more features
    than that). For each subject X (frames, C x L) and Y (frames, K) are centred and W = (X'X + alpha m I)^-1 X'Y, where m is the mean
    eigenvalue of X'X, so that alpha has no unit. alpha is the value of `alphas` whose W, fitted on the training split, has the highest
    correlation with the validation targets (over all validation frames, averaged over components; computed from the covariances, exactly);
    W is then fitted again, with that alpha, on training and validation together.

    Only frames whose lags all lie inside the window are fitted. When estimating, the signal beyond the window counts as 0, so that the
    estimates keep the length T but are weaker at its edges. Masked channels count as 0. A subject that was not in the training set (-1)
    gets the average of all weights.

    Parameters
    ----------
    n_subjects, n_features, n_channels : int
    lags : sequence of int
        Samples, in equal steps.
    n_components : int
        K is the smaller of this and F.
    alphas : sequence of float

    Attributes
    ----------
    alpha, correlation : Tensor, shape (S,)
        The chosen alpha and its correlation on the validation split; NaN where a subject has no validation frames, for whom the alpha is
        that of the highest correlation averaged over the others.
    n_frames : Tensor, shape (S,)
        Frames of the last fit.
    """

    weight: Tensor
    intercept: Tensor
    target_mean: Tensor
    components: Tensor
    alpha: Tensor
    correlation: Tensor
    n_frames: Tensor

    def __init__(
        self,
        n_subjects: int,
        n_features: int,
        *,
        n_channels: int,
        lags: Sequence[int] = DEFAULT_LAGS,
        n_components: int = 64,
        alphas: Sequence[float] = DEFAULT_ALPHAS,
    ) -> None:
        super().__init__()
        self.lags, self.step = check_lags(lags)
        self.alphas = [float(alpha) for alpha in alphas]
        if not self.alphas or min(self.alphas) <= 0:
            raise ValueError(f"alphas must be positive, got {self.alphas}.")
        n_reduced = min(n_components, n_features)
        self.config: dict[str, Any] = {
            "n_subjects": n_subjects,
            "n_features": n_features,
            "n_channels": n_channels,
            "lags": self.lags,
            "n_components": n_components,
            "alphas": self.alphas,
        }
        self.n_subjects, self.n_channels, self.n_features = n_subjects, n_channels, n_features
        self.counts: dict[str, int] = {}
        self.register_buffer("weight", torch.zeros(n_subjects, n_reduced, n_channels, len(self.lags)))
        self.register_buffer("intercept", torch.zeros(n_subjects, n_reduced))
        self.register_buffer("target_mean", torch.zeros(n_features))
        self.register_buffer("components", torch.eye(n_features, n_reduced))
        self.register_buffer("alpha", torch.full((n_subjects,), torch.nan))
        self.register_buffer("correlation", torch.full((n_subjects,), torch.nan))
        self.register_buffer("n_frames", torch.zeros(n_subjects, dtype=torch.int64))

    @torch.no_grad()
    def fit(self, train_batches: Batches, valid_batches: Batches, *, memory: int = 4 * 2**30) -> dict[str, int]:
        """Fit the reduction of the targets and the weights of each subject, from sums over frames in float64.

        Parameters
        ----------
        train_batches, valid_batches : callable
            Each call goes once through the split: (signal (B, C, T), target (B, F, T), subject (B,)). Masked channels are 0. The data
            are gone through once for the targets, then once for each group of subjects that fits in `memory`.
        memory : int
            Bytes that the covariances may take (305 MB a subject for 208 channels and 21 lags); one subject is always fitted.

        Returns
        -------
        dict
            ``n_unseen_valid``: validation segments of subjects that are not in the training set, not used;
            ``n_subjects_without_valid``: subjects whose alpha was chosen by the others.

        Raises
        ------
        ValueError
            If shapes disagree, a window is shorter than the lags, a subject has no training segment or a flat signal, or there is no
            validation segment at all.
        """
        self._fit_reduction(train_batches)
        n_design = self.n_channels * len(self.lags)
        n_group = max(1, int(memory // (2 * 8 * n_design**2)))
        n_unseen_valid = 0
        curves = torch.full((self.n_subjects, len(self.alphas)), torch.nan, dtype=torch.float64)
        waiting: dict[int, _Moments] = {}  # subjects without validation frames
        for start in range(0, self.n_subjects, n_group):
            group = range(start, min(start + n_group, self.n_subjects))
            train, _ = self._accumulate(train_batches, group)
            valid, n_unseen_valid = self._accumulate(valid_batches, group)
            for subject in group:
                if subject not in train:
                    raise ValueError(f"Subject {subject} has no training segments: leave it out of the subject index.")
                moments = train.pop(subject)
                if subject not in valid:
                    waiting[subject] = moments
                    continue
                held_out = valid.pop(subject)
                curves[subject] = self._validate(subject, moments, held_out)
                best = int(curves[subject].argmax())
                self.correlation[subject] = curves[subject, best]
                self._keep(subject, moments.add(held_out), self.alphas[best])
        if len(waiting) == self.n_subjects:
            raise ValueError("There is no validation segment of any training subject, so alpha cannot be chosen: is the split empty?")
        for subject, moments in waiting.items():
            self._keep(subject, moments, self.alphas[int(curves.nanmean(0).argmax())])
        self.counts = {"n_unseen_valid": n_unseen_valid, "n_subjects_without_valid": len(waiting)}
        return self.counts

    def _fit_reduction(self, batches: Batches) -> None:
        device, n_features = self.weight.device, self.n_features
        n_frames = 0
        total = torch.zeros(n_features, dtype=torch.float64, device=device)
        square = torch.zeros(n_features, n_features, dtype=torch.float64, device=device)
        n_reduced = self.components.shape[1]
        for _, target, _ in batches():
            if target.ndim != 3 or target.shape[1] != n_features:
                raise ValueError(f"Ridge was made for targets (B, {n_features}, T), got {tuple(target.shape)}.")
            frames = target.to(device, torch.float64).transpose(0, 1).flatten(1)  # (F, B x T)
            n_frames += frames.shape[1]
            total += frames.sum(1)
            if n_reduced < n_features:
                square += frames @ frames.T
        if n_frames == 0:
            raise ValueError("Ridge got no training segments: is the split empty?")
        mean = total / n_frames
        self.target_mean.copy_(mean)
        if n_reduced < n_features:
            vectors = torch.linalg.eigh(square / n_frames - torch.outer(mean, mean)).eigenvectors
            self.components.copy_(vectors[:, -n_reduced:].flip(1))  # the largest first

    def _accumulate(self, batches: Batches, group: range) -> tuple[dict[int, _Moments], int]:
        """Sum up the subjects of a group; also count the segments of unseen subjects."""
        moments: dict[int, _Moments] = {}
        n_unseen = 0
        for signal, target, subject in batches():
            _check_channels(signal, self.n_channels)
            check_subjects(subject, self.n_subjects)
            if len(target) != len(signal) or target.shape[2] != signal.shape[2]:
                raise ValueError(f"Signal and target must agree in B and T, got {tuple(signal.shape)} and {tuple(target.shape)}.")
            n_unseen += int((subject < 0).sum())
            for index in subject.unique().tolist():
                if index in group:
                    rows = subject == index
                    x = signal[rows].to(self.weight.device, torch.float64)
                    y = self.project(target[rows].to(self.weight.device)).double()
                    if index not in moments:
                        moments[index] = _Moments.start(self.n_channels, len(self.lags), y.shape[1], x.device)
                    moments[index].accumulate(x, y, self.lags, self.step)
        return moments, n_unseen

    def _validate(self, subject: int, train: _Moments, valid: _Moments) -> Tensor:
        """Correlate estimates and targets of the validation split for each alpha, averaged over components."""
        xx, xy, _, _, _ = train.centre()
        valid_xx, valid_xy, valid_yy, _, _ = valid.centre()
        curve = []
        for alpha in self.alphas:
            weight = _solve(xx, xy, alpha, subject)
            product = (weight * valid_xy).sum(0)
            variance = (weight * (valid_xx @ weight)).sum(0).clamp(min=0) * valid_yy
            # A component that is constant on either side correlates with nothing: 0, as in similarity.correlation
            curve.append(torch.where(variance > 0, product / variance.sqrt().clamp(min=1e-300), 0.0).mean())
        return torch.stack(curve).cpu()

    def _keep(self, subject: int, moments: _Moments, alpha: float) -> None:
        xx, xy, _, x_mean, y_mean = moments.centre()
        weight = _solve(xx, xy, alpha, subject)
        self.weight[subject] = weight.unflatten(0, (len(self.lags), self.n_channels)).permute(2, 1, 0).to(self.weight.dtype)
        self.intercept[subject] = (y_mean - x_mean @ weight).to(self.intercept.dtype)
        self.alpha[subject] = alpha
        self.n_frames[subject] = moments.n

    def forward(self, signal: Tensor, positions: Tensor, subject: Tensor, channel_mask: Tensor | None = None) -> Tensor:
        """Estimate the reduced target (B, K, T).

        RuntimeError before ``fit``; ValueError if shapes disagree or a subject is not in the table.
        """
        check_inputs(signal, positions, subject, channel_mask)
        _check_channels(signal, self.n_channels)
        check_subjects(subject, self.n_subjects)
        if not bool(self.n_frames.any()):
            raise RuntimeError("This ridge has no weights yet: call fit, or load a saved state.")
        signal = silence_absent(signal, channel_mask).to(self.weight.dtype)
        padded = functional.pad(signal, (-self.lags[0], self.lags[-1]))
        estimates = signal.new_empty(signal.shape[0], self.weight.shape[1], signal.shape[2])
        for index in subject.unique().tolist():
            rows = subject == index
            weight, intercept = self.weight[index], self.intercept[index]
            if index < 0:
                weight, intercept = self.weight.mean(0), self.intercept.mean(0)
            estimates[rows] = functional.conv1d(padded[rows], weight, intercept, dilation=self.step)
        return estimates

    def project(self, targets: Tensor) -> Tensor:
        """Reduce targets (N, F, T) to (N, K, T)."""
        if targets.ndim != 3 or targets.shape[1] != self.n_features:
            raise ValueError(f"Ridge was made for targets (N, {self.n_features}, T), got {tuple(targets.shape)}.")
        targets = targets.to(self.components.dtype)
        if self.components.shape[1] == self.n_features:
            return targets - self.target_mean[:, None]
        return self.components.T @ targets - (self.target_mean @ self.components)[:, None]

    def scores(self, estimates: Tensor, candidates: Tensor) -> Tensor:
        """Score estimates (B, K, T) against candidates (N, F, T), or (N, K, T) already projected, by correlation over time: (B, N).

        Where many batches of estimates meet the same candidates, project these once.
        """
        if candidates.shape[1] != self.components.shape[1]:
            candidates = self.project(candidates)
        return similarity.correlation(estimates, candidates)


def _solve(xx: Tensor, xy: Tensor, alpha: float, subject: int) -> Tensor:
    """Solve (xx + alpha m I) W = xy for W (L x C, K), m the mean eigenvalue of xx."""
    scale = float(xx.diagonal().mean())
    if not scale > 0:
        raise ValueError(f"Subject {subject}: the signal is flat or not finite (mean eigenvalue {scale}), so there is nothing to fit.")
    # A Cholesky factor for each of ten alphas takes a quarter of the time of one eigendecomposition (2,688 columns, 2 cores).
    penalised = xx.clone()
    penalised.diagonal().add_(alpha * scale)
    return torch.cholesky_solve(xy, torch.linalg.cholesky(penalised))


@dataclass
class _Moments:
    """Sums over frames of one subject's lagged signal x (L x C) and reduced target y (K), in float64.

    The lagged signal is never made for all frames: its covariance has block (l, l') = sum_t x[t + l] x[t + l']', and block
    (l + step, l' + step) is the same sum one step later, so it differs only by frames at the two edges of the window. `first` holds the
    blocks (first lag, l'), `edge` the differences; ``centre`` puts them together. For 21 lags and 3 s windows at 120 Hz this is a
    fourteenth of the arithmetic.
    """

    n: int
    x: Tensor  # (L, C)
    y: Tensor  # (K,)
    first: Tensor  # (L, C, C): block (first lag, l)
    edge: Tensor  # ((L - 1) x C, (L - 1) x C)
    xy: Tensor  # (L, C, K)
    yy: Tensor  # (K,)

    @classmethod
    def start(cls, n_channels: int, n_lags: int, n_reduced: int, device: torch.device) -> _Moments:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(*shape, dtype=torch.float64, device=device)

        n_edge = (n_lags - 1) * n_channels
        return cls(
            n=0,
            x=zeros(n_lags, n_channels),
            y=zeros(n_reduced),
            first=zeros(n_lags, n_channels, n_channels),
            edge=zeros(n_edge, n_edge),
            xy=zeros(n_lags, n_channels, n_reduced),
            yy=zeros(n_reduced),
        )

    def accumulate(self, signal: Tensor, target: Tensor, lags: list[int], step: int) -> None:
        """Add segments (b, C, T) and their reduced targets (b, K, T), float64."""
        n_times = signal.shape[2]
        start, stop = max(0, -lags[0]), n_times - max(0, lags[-1])
        if stop <= start:
            raise ValueError(f"A window of {n_times} samples has no frame whose lags {lags[0]}..{lags[-1]} all lie inside it.")

        def cut(values: Tensor, begin: int, end: int) -> Tensor:
            return values[:, :, begin:end].transpose(0, 1).flatten(1)  # (C, b x frames)

        y = cut(target, start, stop)
        self.n += y.shape[1]
        self.y += y.sum(1)
        self.yy += y.square().sum(1)
        x_first = cut(signal, start + lags[0], stop + lags[0])
        for index, lag in enumerate(lags):
            x = x_first if index == 0 else cut(signal, start + lag, stop + lag)
            self.x[index] += x.sum(1)
            self.first[index] += x_first @ x.T
            self.xy[index] += x @ y.T
        if len(lags) > 1:
            head = torch.cat([cut(signal, start + lag, start + lag + step) for lag in lags[:-1]])
            tail = torch.cat([cut(signal, stop + lag, stop + lag + step) for lag in lags[:-1]])
            self.edge.addmm_(tail, tail.T).addmm_(head, head.T, alpha=-1)

    def add(self, other: _Moments) -> _Moments:
        """Return the sums over the frames of both; uses up self."""
        self.n += other.n
        for name in ("x", "y", "first", "edge", "xy", "yy"):
            getattr(self, name).add_(getattr(other, name))
        return self

    def centre(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return the covariances xx (L x C, L x C), xy (L x C, K), the variance yy (K,), and the means of x and y."""
        n_lags, n_channels = self.x.shape
        xx = self.first.new_empty(n_lags, n_channels, n_lags, n_channels)
        xx[0] = self.first.transpose(0, 1)
        edge = self.edge.unflatten(1, (n_lags - 1, n_channels)).unflatten(0, (n_lags - 1, n_channels)) if n_lags > 1 else None
        for index in range(1, n_lags):
            xx[index, :, 0] = self.first[index].T
            if edge is not None:
                xx[index, :, 1:] = xx[index - 1, :, :-1] + edge[index - 1]
        x_mean, y_mean = self.x.flatten() / self.n, self.y / self.n
        covariance = xx.reshape(n_lags * n_channels, -1).div_(self.n).addr_(x_mean, x_mean, alpha=-1)
        cross = self.xy.flatten(0, 1) / self.n - torch.outer(x_mean, y_mean)
        return covariance, cross, (self.yy / self.n - y_mean.square()).clamp(min=0), x_mean, y_mean
