"""Settings of the networks and of the quadtree."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from medqdm.config.fields import (
    Blocks,
    BlocksEach,
    Channels,
    Layers,
    NonNegative,
    Positive,
    Section,
)


class LightSection(Section):
    """The light autoencoder: all width at latent resolution, a decoder that sees the LR image."""

    compression: Literal[2, 4, 8] = 4
    """Pixels per latent along an axis."""
    channels: Channels = 64
    """Width of encoder and decoder."""
    encoder_blocks: Blocks = 4
    """Residual blocks of the encoder."""
    decoder_blocks: Blocks = 16
    """Residual blocks of the decoder."""


class AutoencoderSection(Section):
    """The autoencoder between pixels and latents."""

    light: LightSection | None = None
    """The light autoencoder instead of the KL-VAE that the next five settings describe."""

    channels: Annotated[tuple[Channels, ...], Field(min_length=1, max_length=8)] = (128, 256, 512)
    """Channels per resolution; the compression is 2 to the power of (their number - 1)."""
    num_res_blocks: BlocksEach = 2
    """Residual blocks per resolution of the encoder; the decoder has one more."""
    latent_channels: Channels = 3
    """Channels of a latent."""
    norm_groups: Channels = 32
    """Groups of each GroupNorm."""
    mid_attention: bool = True
    """Self-attention in the middle of encoder and decoder."""
    image_channels: Channels = 1
    """Channels of an image: 1 for CT; published weights have 3."""
    latent_scale: (
        Positive | Annotated[tuple[Positive, ...], Field(min_length=1, max_length=8192)] | None
    ) = None
    """Multiplier that gives latents unit variance, one or one per latent channel; None: measured
    per channel after stage one."""

    @property
    def compression(self) -> int:
        """Pixels per latent along an axis."""
        return self.light.compression if self.light else int(2 ** (len(self.channels) - 1))

    @model_validator(mode="after")
    def _scale_fits(self) -> "AutoencoderSection":
        if isinstance(self.latent_scale, tuple) and len(self.latent_scale) != self.latent_channels:
            raise ValueError(
                f"latent_scale must be one number or {self.latent_channels}, one per latent "
                f"channel, got {len(self.latent_scale)}"
            )
        return self


class CorrectorSection(Section):
    """Convolutions over latents that correct what the transformer's streams predict."""

    channels: Channels = 64
    """Width."""
    blocks: Blocks = 6
    """Residual blocks at half the latents' resolution; four more are at the full one."""


class TransformerSection(Section):
    """The two-stream transformer."""

    size: Literal["T", "S", "B", "L", "custom"] = "B"
    """A row of ``models.streams.SIZES``, or custom with the three numbers below."""
    depth: Layers | None = None
    hidden_size: Channels | None = None
    num_heads: Channels | None = None
    prediction: Literal["z_0", "residual", "preconditioned"] = "z_0"
    """What the network's output means: the clean latent (paper), its difference from z_lr, or what
    remains of that beside the best guess from z_t alone (``Process.guess``; EDM,
    arXiv:2206.00364), as a multiple of the guess's error: then the network need not copy z_t, and
    its target has about unit variance at every step."""
    mask_input: bool = False
    """Show the network the refined regions as one more channel."""
    packing: Literal["windows", "tokens"] = "windows"
    """What exists downstream: all tokens of windows that hold a refined one (published weights), or
    refined tokens alone, for which a network must have been trained."""
    corrector: CorrectorSection | None = None
    """Convolutions after both streams (``models.corrector``); None: none, as published. They run
    over the whole latent at every step, so that their cost does not follow the quadtree."""

    @model_validator(mode="after")
    def _custom_is_whole(self) -> "TransformerSection":
        given = [self.depth, self.hidden_size, self.num_heads]
        if (self.size == "custom") != all(v is not None for v in given) or (
            self.size != "custom" and any(v is not None for v in given)
        ):
            raise ValueError(
                "depth, hidden_size and num_heads go with size custom, all three together"
            )
        return self


class QuadtreeSection(Section):
    """Which regions are refined."""

    threshold: NonNegative = 0.15
    """The paper's s: refine where max - min of the LR image in [-1, 1] exceeds it."""
    num_levels: Annotated[int, Field(ge=1, le=12)] = 4
    """Levels of the tree, from cells of 2 LR pixels upward."""
    inclusive: bool = False
    """Compare with >= (published code) instead of >, so that s = 0 refines constant air too."""
    noise_factor: NonNegative = 0.0
    """c of the noise-aware threshold max(s, c * noise sd of the slice); 0 turns it off."""


class EDSRSection(Section):
    """A regression network to compare with: residual blocks at LR resolution, one pixel shuffle."""

    network: Literal["edsr"] = "edsr"
    width: Channels = 64
    """Channels of the residual blocks."""
    blocks: Blocks = 11
    """Residual blocks of two convolutions each."""


class ResShiftSection(Section):
    """A U-Net in the transformer's place, over the whole latent, to compare with."""

    network: Literal["resshift"] = "resshift"
    channels: Annotated[
        tuple[Annotated[int, Field(gt=0, le=8192, multiple_of=32)], ...],
        Field(min_length=1, max_length=5),
    ] = (64, 96, 96, 128)
    """Channels per resolution, each half the one before; multiples of 32, an attention head's."""
    res_blocks: BlocksEach = 1
    """Residual blocks per resolution on the way down; one more on the way up."""
    attention_levels: Annotated[int, Field(ge=0, le=5)] = 1
    """Coarsest resolutions with self-attention, beside the one in the middle."""


RIVALS = ("edsr", "resshift")
RivalSection = Annotated[EDSRSection | ResShiftSection, Field(discriminator="network")]
