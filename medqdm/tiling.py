"""Tiling: overlapping tiles of a slice, and their Gaussian fusion."""

import torch
from jaxtyping import Float
from torch import Tensor

from medqdm.errors import MedQDMError


def tile_starts(length: int, tile: int, stride: int) -> list[int]:
    """Where tiles begin along an axis; the last one ends with the axis.

    Args:
        length: of the axis, in pixels.
        tile: length of a tile; an axis not longer than it has one tile.
        stride: distance of neighbouring tiles, at most ``tile``.

    >>> tile_starts(300, 128, 112)
    [0, 112, 172]
    """
    if not 0 < stride <= tile:
        raise MedQDMError(
            f"tiling: the stride must be 1 to the tile's {tile} pixels, got {stride}; "
            "tiles would leave gaps"
        )
    if length <= tile:
        return [0]
    return [*range(0, length - tile, stride), length - tile]


def gaussian_weights(side: int) -> Float[Tensor, " side"]:
    """Weights of a tile's pixels along an axis, float64.

    A Gaussian of ``sigma = 0.3 ((side - 1) / 2 - 1) + 0.8`` around the middle
    (arXiv:2503.12015, ultra-high resolution).
    """
    sigma = 0.3 * ((side - 1) / 2 - 1) + 0.8
    x = torch.arange(side, dtype=torch.float64) - (side - 1) / 2
    return torch.exp(-(x**2) / (2 * sigma**2))


class Fusion:
    """Sums weighted tiles in float64 and divides by the weights.

    Args:
        shape: of the whole, ``(..., h, w)``; its maps are fused alike.

    >>> fusion = Fusion(4, 6)
    >>> fusion.add(torch.ones(4, 4), 0, 0)
    >>> fusion.add(torch.ones(4, 4), 0, 2)
    >>> bool((fusion.result() == 1).all())
    True
    """

    def __init__(self, *shape: int) -> None:
        self._sum = torch.zeros(*shape, dtype=torch.float64)
        self._weight = torch.zeros(*shape[-2:], dtype=torch.float64)

    def add(self, tile: Float[Tensor, "... h w"], y: int, x: int) -> None:
        """Add a tile whose first pixel lies at (y, x)."""
        height, width = tile.shape[-2:]
        weights = gaussian_weights(height)[:, None] * gaussian_weights(width)[None, :]
        area = (..., slice(y, y + height), slice(x, x + width))
        self._sum[area] += weights * tile.cpu().double()
        self._weight[area] += weights

    def result(self) -> Float[Tensor, "... height width"]:
        """The fused whole, float32; every pixel must lie in a tile."""
        return (self._sum / self._weight).float()
