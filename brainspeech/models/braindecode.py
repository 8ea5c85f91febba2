"""Networks of the braindecode library as encoders by name.

    build("braindecode", n_subjects=4, n_features=40, n_channels=32, n_times=343, model="ShallowFBCSPNet")

They were made to give one vector per window; what is wanted here is an estimate for every sample. Two ways lead there, both linear, so
that all that is not linear is the network's own:

- *given*: the network's last layer puts out ``n_knots`` vectors of ``width`` numbers, which stand at equal distances over the window. A
  1x1 convolution makes the features of each, and between them the estimate is interpolated linearly.
- *kept*: a network that itself puts out a sequence (ShallowFBCSPNet and Deep4Net with ``options={"final_conv_length": 1}``) keeps it. Each
  of its frames stands in the middle of the samples that it depends on; before the first and after the last the estimate stays.

Which one it is shows in the network's output and is kept in ``time_axis``. A network knows neither positions nor subjects: positions take
no part, the channels must be those that it was built for, and a subject layer (the paper's, square) stands in front of it unless it is
turned off.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from brainspeech.host import Known

from .base import Encoder, check_inputs, check_subjects, silence_absent
from .layers import SubjectLayer

# Those tried here: of a licence that lets everyone use them, without a download, and made from channels, samples and rate alone.
NETWORKS = (
    "AttentionBaseNet",
    "BDTCN",
    "CTNet",
    "Deep4Net",
    "EEGConformer",
    "EEGITNet",
    "EEGInceptionERP",
    "EEGInceptionMI",
    "EEGNeX",
    "EEGNet",
    "EEGSimpleConv",
    "EEGTCNet",
    "SCCNet",
    "ShallowFBCSPNet",
    "SincShallowNet",
    "TCFormer",
    "TIDNet",
    "TSception",
)
PROBES = 16  # random windows from which the reach of an output frame is read: more of them see more of a max-pooling's choices


class BraindecodeEncoder(Encoder):
    """Estimate stimulus features with a network of braindecode; see the module's text for what stands before and after it.

    Parameters
    ----------
    n_subjects : int
        Subjects of the training set.
    n_features : int
        F: features of the target.
    n_channels, n_times : int
        C and T, the same for every batch.
    model : str
        One of ``NETWORKS``.
    options : mapping, optional
        Further arguments of the network's class.
    sfreq : float
        Rate of the signal in Hz; networks take their filter lengths from it.
    width : int
        Numbers that the network puts out per knot.
    n_knots : int
        Knots over the window, where the network gives no sequence of its own; 30 over the paper's 343 samples are one every 95 ms.
    subject_layer : bool
        False: nothing depends on the subject.
    generic_subject, subject_dropout : bool, float
        As in ``conv``: a layer for unseen subjects, learned on this share of the training segments.
    """

    def __init__(
        self,
        n_subjects: int,
        n_features: int,
        *,
        n_channels: int,
        n_times: int,
        model: str = "EEGNet",
        options: Mapping[str, Any] | None = None,
        sfreq: float = 120.0,
        width: int = 32,
        n_knots: int = 30,
        subject_layer: bool = True,
        generic_subject: bool = False,
        subject_dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if width < 1 or not 2 <= n_knots <= n_times:
            raise ValueError(f"width must be at least 1 and n_knots from 2 to n_times ({n_times}), got {width} and {n_knots}.")
        if generic_subject and not subject_layer:
            raise ValueError("A generic subject needs the subject layer: set subject_layer=True.")
        self.n_subjects, self.n_channels, self.n_times, self.width = n_subjects, n_channels, n_times, width
        self.subject_layer = (
            SubjectLayer(n_subjects, n_channels, n_channels, generic=generic_subject, dropout=subject_dropout) if subject_layer else None
        )
        shape = {"n_chans": n_channels, "n_times": n_times, "sfreq": sfreq}
        self.network = _make(model, width, options, shape)
        centres = _frame_centres(self.network, n_channels, n_times, model)
        self.time_axis = "given" if centres is None else "kept"
        if centres is None:
            self.network = _make(model, width * n_knots, options, shape)
            centres = (np.arange(n_knots) + 0.5) * n_times / n_knots - 0.5
        self.head = nn.Conv1d(width, n_features, 1)
        self.interpolation: Tensor
        self.register_buffer("interpolation", _interpolate(centres, n_times), persistent=False)

    def forward(
        self, signal: Tensor, positions: Tensor, subject: Tensor, channel_mask: Tensor | None = None, known: Known | None = None
    ) -> Tensor:
        """Estimate the features (B, F, T); shapes as in ``Encoder``, masked channels count as 0.

        Raises
        ------
        ValueError
            If shapes disagree with each other or with those that the network was built for, or a subject is not in the table.
        """
        check_inputs(signal, positions, subject, channel_mask)
        check_subjects(subject, self.n_subjects, known)
        if tuple(signal.shape[1:]) != (self.n_channels, self.n_times):
            raise ValueError(
                f"This network was built for {self.n_channels} channels and {self.n_times} samples, got {tuple(signal.shape[1:])}; "
                "its layers have a weight for each. Build another one, or use the encoder conv, which takes any number of both."
            )
        hidden = silence_absent(signal, channel_mask)
        if self.subject_layer is not None:
            hidden = self.subject_layer(hidden, subject, known)
        values = self.network(hidden)
        if self.time_axis == "given":
            values = values.unflatten(1, (self.width, -1))  # (B, width, n_knots)
        # The weights of an interpolation sum to 1, so the head may come first, where there are fewer frames.
        return self.head(values) @ self.interpolation.to(values.dtype)


def _import_networks() -> ModuleType:
    """Import braindecode's networks (some four seconds), without what its import says about other libraries' futures."""
    with warnings.catch_warnings():
        # wfdb, which braindecode imports, under pandas 3; and the montage that one of its networks makes, under MNE 1.13.
        warnings.filterwarnings("ignore", message="The inplace keyword in DataFrame.set_index is deprecated")
        warnings.filterwarnings("ignore", message="Montage name 'standard_1020' is deprecated", category=FutureWarning)
        import braindecode.models
    return braindecode.models


def _make(model: str, n_outputs: int, options: Mapping[str, Any] | None, shape: Mapping[str, Any]) -> nn.Module:
    if model not in NETWORKS:
        raise ValueError(f"The network must be one of {', '.join(NETWORKS)}, got {model!r}.")
    network = getattr(_import_networks(), model)
    try:
        with warnings.catch_warnings():
            # EEGNet announces a default that concerns its last layer only.
            warnings.filterwarnings("ignore", message="Parameter 'final_layer_with_constraint=False' is deprecated")
            return network(n_outputs=n_outputs, **shape, **(options or {}))
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise ValueError(
            f"braindecode's {model} cannot be built for {shape['n_chans']} channels, {shape['n_times']} samples at {shape['sfreq']:g} Hz "
            f"with options {dict(options or {})}: {type(error).__name__}: {error}"
        ) from error


@torch.enable_grad()
def _frame_centres(network: nn.Module, n_channels: int, n_times: int, model: str) -> np.ndarray | None:
    """Give the middle sample of what each output frame depends on, by the gradient of the first and the last; None for a vector."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        probe = torch.randn(PROBES, n_channels, n_times, requires_grad=True)
        try:
            output = network.eval()(probe)
        except (RuntimeError, ValueError) as error:
            raise ValueError(f"braindecode's {model} takes no window of {n_channels} channels and {n_times} samples: {error}") from error
    network.train()
    if output.ndim == 2:
        return None
    if output.ndim != 3 or output.shape[2] < 2:
        raise ValueError(
            f"braindecode's {model} puts out {tuple(output.shape)} for {tuple(probe.shape)}: expected a vector per window or a sequence."
        )
    middles = []
    for frame in (0, output.shape[2] - 1):
        (gradient,) = torch.autograd.grad(output[:, :, frame].sum(), probe, retain_graph=True)
        reach = gradient.abs().sum((0, 1)).nonzero()
        middles.append(float(reach.min() + reach.max()) / 2)
    return np.linspace(middles[0], middles[1], output.shape[2])


def _interpolate(centres: np.ndarray, n_times: int) -> Tensor:
    """Give the matrix (n_frames, T) that interpolates linearly between frames at these samples, constant beyond the outer ones."""
    rows = [np.interp(np.arange(n_times), centres, row) for row in np.eye(len(centres))]
    return torch.from_numpy(np.stack(rows).astype(np.float32))
