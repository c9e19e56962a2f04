"""Halo: the light autoencoder block by block, for maps too large to be held at once.

Each block brings the surroundings that its layers look at, and these are cut off again: the result
is that of one piece, and what is held beside it does not grow with the map.
"""

from collections.abc import Callable
from itertools import product
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from medqdm.models.light import LightAutoencoder

BLOCK_LATENTS = 256  # side of a block; a map not larger than it is one
BICUBIC_PX = 2  # how far a bicubic kernel looks, in pixels of what it interpolates


class Span(NamedTuple):
    """A block along an axis, in latents.

    Args:
        start: of what is kept.
        stop: of what is kept.
        first: of what is computed.
        last: of what is computed; like ``stop`` one past the end.
    """

    start: int
    stop: int
    first: int
    last: int


def spans(length: int, block: int, halo: int) -> list[Span]:
    """Blocks that cover an axis, each with its halo, cut to the axis.

    Args:
        length: of the axis.
        block: length of a block; the last may be shorter.
        halo: what a block sees on either side.

    >>> spans(10, 4, 3)[1]
    Span(start=4, stop=8, first=1, last=10)
    """
    return [
        Span(
            start,
            min(start + block, length),
            max(0, start - halo),
            min(start + block + halo, length),
        )
        for start in range(0, length, block)
    ]


@torch.no_grad()
def encode(
    autoencoder: LightAutoencoder, x: Float[Tensor, "b k h w"], block: int = BLOCK_LATENTS
) -> Float[Tensor, "b c height width"]:
    """What ``autoencoder.encode`` gives, to rounding.

    Args:
        autoencoder: the network; for inference only.
        x: image in [-1, 1], sides multiples of ``compression``.
        block: side of a block in latents.
    """
    side = autoencoder.compression

    def part(rows: Span, columns: Span) -> Tensor:
        return autoencoder.encode(_cut(x, rows, columns, side, 1))

    size = x.shape[-2] // side, x.shape[-1] // side
    return _assemble(size, block, autoencoder.encoder_reach, part, 1)


@torch.no_grad()
def decode(
    autoencoder: LightAutoencoder,
    z: Float[Tensor, "b c h w"],
    lr: Float[Tensor, "b k h_lr w_lr"],
    block: int = BLOCK_LATENTS,
) -> Float[Tensor, "b k height width"]:
    """What ``autoencoder.decode`` gives, to rounding.

    Args:
        autoencoder: the network; for inference only.
        z: unscaled latent.
        lr: LR image of the same area.
        block: side of a block in latents; cut to whole LR pixels.
    """
    side, upscale = autoencoder.compression, autoencoder.upscale
    whole_px = max(1, upscale // side)  # latents of an LR pixel: blocks hold whole ones
    halo = -(-autoencoder.decoder_reach // whole_px) * whole_px + BICUBIC_PX * whole_px

    def part(rows: Span, columns: Span) -> Tensor:
        seen = _cut(lr, rows, columns, side, upscale)
        return autoencoder.decode(_cut(z, rows, columns, 1, 1), seen)

    block = max(whole_px, block // whole_px * whole_px)
    return _assemble((z.shape[-2], z.shape[-1]), block, halo, part, side)


def _cut(image: Tensor, rows: Span, columns: Span, times: int, over: int) -> Tensor:
    """What is computed of a map with ``times / over`` pixels a latent."""
    y, x = (slice(s.first * times // over, s.last * times // over) for s in (rows, columns))
    return image[..., y, x]


def _assemble(
    size: tuple[int, int],
    block: int,
    halo: int,
    part: Callable[[Span, Span], Tensor],
    side: int,
) -> Tensor:
    """A map with ``side`` pixels a latent, from the insides of its blocks."""
    whole = None
    for rows, columns in product(*(spans(length, block, halo) for length in size)):
        y, x = (
            slice((s.start - s.first) * side, (s.stop - s.first) * side) for s in (rows, columns)
        )
        inside = part(rows, columns)[..., y, x]
        if inside.shape[-2:] == (size[0] * side, size[1] * side):
            return inside
        if whole is None:
            whole = inside.new_empty((*inside.shape[:2], size[0] * side, size[1] * side))
        y, x = (slice(s.start * side, s.stop * side) for s in (rows, columns))
        whole[..., y, x] = inside
    assert whole is not None  # maps have rows
    return whole
