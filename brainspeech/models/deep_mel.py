"""The audio encoder of Défossez et al. 2023 that is trained jointly with the brain's: Deep Mel."""

from __future__ import annotations

from torch import Tensor

from .base import TargetEncoder
from .layers import lay_out, stack_blocks


class DeepMel(TargetEncoder):
    """Turn mel spectrograms into features that are learned together with the encoder's estimates of them.

    The "Deep Mel" of [1] (Défossez et al. 2023, Methods, "Speech module"): the convolutions of the brain module with ReLU, without its
    spatial attention, subject layer and head; the last convolution is linear, and so followed by its GLU alone. The defaults are those of
    [1]: 120 mels to 768 features, 9,320,128 parameters. Length T is kept.

    Parameters
    ----------
    n_features : int
        F: features that come in, 120 mels in [1].
    n_outputs : int
        Features that come out.
    hidden, depth, kernel, dilation_period, glu_every, activation, skips
        As in ``conv``.

    References
    ----------
    [1] Défossez, Caucheteux, Rapin, Kabeli, King. Decoding speech perception from non-invasive brain recordings. Nature Machine
    Intelligence 5, 2023. arXiv:2208.12266.
    """

    def __init__(
        self,
        n_features: int,
        *,
        n_outputs: int = 768,
        hidden: int = 320,
        depth: int = 10,
        kernel: int = 3,
        dilation_period: int = 5,
        glu_every: int = 2,
        activation: str = "relu",
        skips: bool = True,
    ) -> None:
        super().__init__()
        self.n_features, self.n_outputs = n_features, n_outputs
        self.blocks = stack_blocks(
            n_features,
            hidden,
            depth=depth,
            kernel=kernel,
            dilation_period=dilation_period,
            glu_every=glu_every,
            activation=activation,
            skips=skips,
            n_outputs=n_outputs,
        )

    def forward(self, features: Tensor) -> Tensor:
        """Map features (N, F, T) to (N, n_outputs, T).

        Raises
        ------
        ValueError
            If the features are not F.
        """
        if features.ndim != 3 or features.shape[1] != self.n_features:
            raise ValueError(f"This target encoder takes features (N, {self.n_features}, T), got {tuple(features.shape)}.")
        return self.blocks(lay_out(features)).contiguous()
