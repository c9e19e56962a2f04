"""Corrector: convolutions over latents that correct what the two streams predict.

A token of either stream is a patch, so neighbouring latents meet in linear maps and attention
alone, which take long to learn what noisy latents say of each other. Convolutions with the step's
scale and shift (a U-Net of two resolutions) are made for it; docs/draws.md has what they bring.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from medqdm.models.layers import Modulation, StepEmbedding

FINE_BLOCKS = 2  # residual blocks at full resolution on either side of the coarse ones

Vectors = Sequence[Float[Tensor, "m 2 channels"]]  # of each block: scale and shift per step


class CorrectorSize(NamedTuple):
    """How large a corrector is.

    Args:
        channels: width.
        blocks: residual blocks at half resolution, beside two times ``FINE_BLOCKS`` at full.
    """

    channels: int
    blocks: int


class CorrectorBlock(nn.Module):
    """Convolution, scale and shift of the step, SiLU, convolution; added to its input.

    Args:
        channels: of input and output.
    """

    def __init__(self, *, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.modulation = Modulation(hidden_size=channels, num_outputs=2)
        for zero in (self.conv2, self.modulation.linear):
            nn.init.zeros_(zero.weight)
            assert zero.bias is not None
            nn.init.zeros_(zero.bias)

    def forward(
        self,
        x: Float[Tensor, "b channels h w"],
        vectors: Float[Tensor, "m 2 channels"],
        rows: Int[Tensor, "b h w"] | None,
    ) -> Float[Tensor, "b channels h w"]:
        """Transform features.

        Args:
            x: features.
            vectors: scale and shift of each of m steps.
            rows: which of them each place stands at; None: one per slice, or one for all.
        """
        if rows is None:
            scale, shift = (v[:, :, None, None] for v in vectors.unbind(1))
        else:
            scale, shift = (v[rows].permute(0, 3, 1, 2) for v in vectors.unbind(1))
        out: Tensor = self.conv2(functional.silu(self.conv1(x) * (1 + scale) + shift))
        return x + out


class Corrector(nn.Module):
    """A U-Net of two resolutions; zero everywhere before training.

    Args:
        in_channels: what it sees: noisy latent, LR image, mask, the streams' prediction.
        out_channels: of a latent.
        size: width and depth.
    """

    def __init__(self, *, in_channels: int, out_channels: int, size: CorrectorSize) -> None:
        super().__init__()
        channels, blocks = size

        def several(count: int) -> nn.ModuleList:
            return nn.ModuleList(CorrectorBlock(channels=channels) for _ in range(count))

        self.step = StepEmbedding(hidden_size=channels)
        self.first = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.before = several(FINE_BLOCKS)
        self.down = nn.Conv2d(channels, channels, 2, stride=2)
        self.coarse = several(blocks)
        self.up = nn.ConvTranspose2d(channels, channels, 2, stride=2)
        self.after = several(FINE_BLOCKS)
        self.last = nn.Conv2d(channels, out_channels, 3, padding=1)
        nn.init.zeros_(self.last.weight)
        assert self.last.bias is not None
        nn.init.zeros_(self.last.bias)

    def vectors(self, t: Int[Tensor, " m"]) -> tuple[Float[Tensor, "m 2 channels"], ...]:
        """Scale and shift of every block at schedule indices."""
        step = self.step(t)
        blocks = (*self.before, *self.coarse, *self.after)
        return tuple(block.modulation(step) for block in blocks)

    def forward(
        self,
        x: Float[Tensor, "b k h w"],
        vectors: Vectors,
        rows: Int[Tensor, "b h w"] | None = None,
    ) -> Float[Tensor, "b c h w"]:
        """What is to be added to the prediction.

        Args:
            x: what it sees; even sides.
            vectors: as ``vectors`` gives them.
            rows: which of their steps each latent stands at, constant in patches of 2 x 2; None:
                one per slice, or one for all.
        """
        before, after = len(self.before), len(self.after)
        fine = self.first(x.contiguous(memory_format=torch.channels_last))
        for block, v in zip(self.before, vectors[:before], strict=True):
            fine = block(fine, v, rows)
        coarse = self.down(fine)
        coarse_rows = None if rows is None else rows[:, ::2, ::2]
        for block, v in zip(self.coarse, vectors[before:-after], strict=True):
            coarse = block(coarse, v, coarse_rows)
        fine = fine + self.up(coarse)
        for block, v in zip(self.after, vectors[-after:], strict=True):
            fine = block(fine, v, rows)
        out: Tensor = self.last(fine)
        return out
