"""Noise: standard normal draws for the slices of a volume, alike for slices that lie close."""

import math

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor


class SliceNoise:
    """Standard normal noise on the latent canvas of a whole slice.

    Every ``correlation_mm`` along the normal there is an anchor, a canvas of its own noise. A slice
    between the anchors a and b, at the share u of the way, takes (ISCS, piecewise)::

        cos(u pi / 2) a + sin(u pi / 2) b

    As the squares of the weights sum to 1, each slice is N(0, 1), and slices d mm apart between the
    same anchors correlate with ``cos(pi d / (2 correlation_mm))``. A draw depends on the seed, its
    number and the position alone: not on the other slices, their order, batches or tiles; tiles
    cut theirs out of the canvas.

    Args:
        seed: of the run, 0 or more.
        position_mm: of the slice along the normal of the slices; read to a micrometre.
        shape: (c, h, w) of the canvas.
        correlation_mm: distance of the anchors; 0: each position has noise of its own.
    """

    def __init__(
        self,
        seed: int,
        position_mm: float,
        shape: tuple[int, int, int],
        correlation_mm: float,
    ) -> None:
        self._seed = seed
        self._shape = shape
        self._draws: dict[int, Tensor] = {}
        position_um, distance_um = round(1000 * position_mm), round(1000 * correlation_mm)
        if distance_um == 0:
            self._anchors = {position_um: 1.0}
        else:
            before, rest = divmod(position_um, distance_um)
            angle = math.pi / 2 * rest / distance_um
            self._anchors = {before: math.cos(angle), before + 1: math.sin(angle)}

    def draw(self, k: int) -> Float[Tensor, "c h w"]:
        """Draw k, 0 or more: float32 on the CPU."""
        if k not in self._draws:
            weighted = (w * self._anchor(k, place) for place, w in self._anchors.items() if w)
            self._draws[k] = torch.stack(list(weighted)).sum(dim=0)
        return self._draws[k]

    def _anchor(self, k: int, place: int) -> Tensor:
        entropy = (self._seed, k, place % 2**64)  # places below 0 exist, seeds below 0 do not
        state = np.random.SeedSequence(entropy).generate_state(1, np.uint64)
        generator = torch.Generator().manual_seed(int(state[0] >> np.uint64(1)))
        return torch.randn(self._shape, generator=generator)
