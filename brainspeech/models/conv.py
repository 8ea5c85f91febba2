"""The convolutional encoder of Défossez et al. 2023."""

from __future__ import annotations

from torch import Tensor, nn

from brainspeech.host import Known

from .base import Encoder, check_inputs, silence_absent
from .layers import Conv1d, SpatialAttention, SubjectEmbedding, SubjectLayer, lay_out, stack_blocks


class ConvEncoder(Encoder):
    """Estimate stimulus features from M/EEG of any montage, with a layer for each subject.

    The brain module of [1] (Défossez et al. 2023, Methods, "Brain module"): spatial attention, a 1x1 convolution, the subject layer,
    residual dilated convolutions with GLUs in between, and two 1x1 convolutions. The defaults are those of [1]: 7,596,754 parameters
    and 72,900 for each subject (F = 1024), a receptive field of 135 samples. Length T is kept. What [1] left out, one part at a time,
    are options.

    Parameters
    ----------
    n_subjects : int
        Subjects of the training set.
    n_features : int
        F: features of the target.
    n_virtual : int
        Virtual channels after spatial attention.
    hidden : int
        Width of the convolutions.
    depth : int
        Number of residual convolutions.
    kernel : int
        Their kernel, odd.
    dilation_period : int
        Their dilations are 1, 2, 4 ... 2**(period - 1), and again.
    glu_every : int
        A GLU follows every so many convolutions; 0 for none.
    head_width : int, optional
        Width between the last two 1x1 convolutions; twice `hidden` if not given.
    n_harmonics : int
        Frequencies along each axis of the position embedding.
    spatial_attention : bool
        False: a 1x1 convolution of the channels themselves, of which there must then be `n_channels`; masked ones count as 0.
    n_channels : int, optional
        Only without spatial attention.
    spatial_dropout : float
        Radius, on the unit square, within which channels are left out in training; 0 turns it off.
    initial : bool
        False: no 1x1 convolution before the subject layer. Without spatial attention too, the channels are the virtual channels.
    subject_layer : bool
        False: nothing depends on the subject, unless there is a subject embedding.
    subject_embedding : int
        Numbers of a vector for each subject that stands in for the subject layer: after the initial convolution it is added to the
        virtual channels, the same at every sample. 64 in [1]; 0 for none.
    generic_subject : bool
        Learn a layer (or vector) for subjects that were not in the training set, which otherwise get the average of all.
    subject_dropout : float
        Share of training segments that train the generic layer; only with `generic_subject`.
    activation : {"gelu", "relu"}
        Of the residual convolutions and of the head.
    skips : bool
        False: no residual connections.
    head : bool
        False: no 1x1 convolutions at the end. The last residual convolution then puts out F features itself, without norm, activation and
        residual, and its GLU works on F.

    References
    ----------
    [1] Défossez, Caucheteux, Rapin, Kabeli, King. Decoding speech perception from non-invasive brain recordings. Nature Machine
    Intelligence 5, 2023. arXiv:2208.12266.
    """

    def __init__(
        self,
        n_subjects: int,
        n_features: int,
        *,
        n_virtual: int = 270,
        hidden: int = 320,
        depth: int = 10,
        kernel: int = 3,
        dilation_period: int = 5,
        glu_every: int = 2,
        head_width: int | None = None,
        n_harmonics: int = 32,
        spatial_attention: bool = True,
        n_channels: int | None = None,
        spatial_dropout: float = 0.2,
        initial: bool = True,
        subject_layer: bool = True,
        subject_embedding: int = 0,
        generic_subject: bool = False,
        subject_dropout: float = 0.1,
        activation: str = "gelu",
        skips: bool = True,
        head: bool = True,
    ) -> None:
        super().__init__()
        if spatial_attention != (n_channels is None):
            raise ValueError(
                f"n_channels is given if and only if there is no spatial attention, got spatial_attention={spatial_attention}, "
                f"n_channels={n_channels}."
            )
        if subject_layer and subject_embedding:
            raise ValueError("A subject embedding stands in for the subject layer: set subject_layer=False, or subject_embedding=0.")
        if subject_embedding < 0:
            raise ValueError(f"subject_embedding is a size, or 0 for none, got {subject_embedding}.")
        if generic_subject and not (subject_layer or subject_embedding):
            raise ValueError("A generic subject needs the subject layer: set subject_layer=True.")
        if not head and head_width is not None:
            raise ValueError(f"head_width is the width of the head, but head=False, got {head_width}.")
        self.n_channels = n_channels
        self.spatial_attention = (
            SpatialAttention(n_virtual, n_harmonics=n_harmonics, dropout_radius=spatial_dropout) if spatial_attention else None
        )
        width = n_virtual if n_channels is None else n_channels
        self.initial = Conv1d(width, n_virtual, 1) if initial else None
        width = n_virtual if initial else width
        self.subject_layer: SubjectLayer | SubjectEmbedding | None = None
        if subject_layer:
            self.subject_layer = SubjectLayer(n_subjects, width, width, generic=generic_subject, dropout=subject_dropout)
        elif subject_embedding:
            self.subject_layer = SubjectEmbedding(n_subjects, subject_embedding, generic=generic_subject, dropout=subject_dropout)
        self.blocks = stack_blocks(
            width + subject_embedding,
            hidden,
            depth=depth,
            kernel=kernel,
            dilation_period=dilation_period,
            glu_every=glu_every,
            activation=activation,
            skips=skips,
            n_outputs=None if head else n_features,
        )
        width = 2 * hidden if head_width is None else head_width
        between = nn.GELU() if activation == "gelu" else nn.ReLU()
        self.head = nn.Sequential(Conv1d(hidden, width, 1), between, Conv1d(width, n_features, 1)) if head else None

    @property
    def n_unplaced(self) -> int:
        """The largest number of real channels without a position in any segment seen so far."""
        return 0 if self.spatial_attention is None else self.spatial_attention.n_unplaced

    def forward(
        self, signal: Tensor, positions: Tensor, subject: Tensor, channel_mask: Tensor | None = None, known: Known | None = None
    ) -> Tensor:
        """Estimate the features.

        Parameters
        ----------
        signal : Tensor, shape (B, C, T)
            Scaled; finite, also where masked.
        positions : Tensor, shape (B, C, 2)
            In [0, 1]. Without a mask, NaN means that there is no such channel; with one, a real channel without a position takes no
            part in spatial attention and is counted in ``n_unplaced``.
        subject : Tensor, shape (B,)
            -1 for a subject that was not in the training set.
        channel_mask : Tensor, shape (B, C), optional
            True = there.
        known : Known, optional
            What the host knows of the batch; the estimate is the same without.

        Returns
        -------
        Tensor, shape (B, F, T)

        Raises
        ------
        ValueError
            If shapes disagree, a subject is not in the table, or a segment has no channel with a position.
        """
        check_inputs(signal, positions, subject, channel_mask)
        if self.spatial_attention is not None:
            hidden = self.spatial_attention(signal, positions, channel_mask, known)
        else:
            if signal.shape[1] != self.n_channels:
                raise ValueError(f"Without spatial attention the encoder takes {self.n_channels} channels, got {signal.shape[1]}.")
            hidden = silence_absent(signal, channel_mask)
        if self.initial is not None:
            hidden = self.initial(hidden)
        if self.subject_layer is not None:
            hidden = self.subject_layer(hidden, subject, known)
        hidden = self.blocks(lay_out(hidden))
        return (hidden if self.head is None else self.head(hidden)).contiguous()
