"""Jobs: a slice on its way through the network: its tiles, their noise, and what came back."""

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from medqdm.config import Task
from medqdm.diffusion.conservation import conserve
from medqdm.diffusion.consistency import back_project
from medqdm.diffusion.noise import SliceNoise
from medqdm.diffusion.quadtree import steady
from medqdm.networks import quadtree_of
from medqdm.tiling import Fusion, tile_starts

TEXTURE_DRAW = 10_000  # number of the noise draw that texture is made of; no step has it


@dataclass(frozen=True, eq=False)
class EnhancedSlice:
    """One slice of the output.

    Args:
        z: index of the slice in the volume.
        hu: ``(y * upscale, x * upscale)`` float32 in HU.
        refined: ``(ceil(y / 2), ceil(x / 2))`` bool: cells of 2 x 2 input pixels in which detail
            was synthesised by the downstream.
        seconds: time it took.
        deviation_hu: ``(y * upscale, x * upscale)`` float32, standard deviation over the draws;
            None without ``draws``.
    """

    z: int
    hu: NDArray[np.float32]
    refined: NDArray[np.bool_]
    seconds: float
    deviation_hu: NDArray[np.float32] | None = None


class SliceJob:
    """A slice on its way through the network: its tiles, their noise, and what came back.

    A slice that is cut is fused where that shows least: the latents of its tiles if the autoencoder
    looks at neighbourhoods alone and can then decode the whole (``medqdm.models.halo``), their
    pixels if not (arXiv:2503.12015, ultra-high resolution).

    Attributes:
        fuses_latents: whether ``add`` takes the latents of tiles; pixels if not.
        mean: whether the picture is the mean of the draws, not the first.
        z_lr: (c, h', w'), the latent of the whole upsampled slice, where a tile's own will not do.
    """

    def __init__(
        self,
        task: Task,
        seeds: Sequence[int],
        z: int,
        hu: NDArray[np.float32],
        position_mm: float,
        *,
        mean: bool = False,
        padding: NDArray[np.bool_] | None = None,
    ) -> None:
        began = time.monotonic()
        self.z = z
        self.is_finite = True
        self.mean = mean
        self._task, self._seeds, self._hu, self._position_mm = task, seeds, hu, position_mm
        self._padding = padding
        normal = torch.from_numpy(task.hu_window.normalize(hu))
        self.lr = _pad_to_multiple(normal, task.lr_multiple)
        height, width = self.lr.shape
        tile = task.tile_lr_px
        stride = tile - tile // 8 // 2 * 2  # 112 of 128, and even: whole cells
        self.tile_shape = min(tile, height), min(tile, width)
        starts = [
            tile_starts(length, side, min(stride, side))
            for length, side in zip((height, width), self.tile_shape, strict=True)
        ]
        self.corners = [(y, x) for y in starts[0] for x in starts[1]]
        self._missing = len(self.corners)
        canvas = task.autoencoder.latent_channels, *self._to_latent(height, width)
        correlation_mm = task.diffusion.sampler.correlation_mm
        self._noises = [SliceNoise(seed, position_mm, canvas, correlation_mm) for seed in seeds]
        # each slice has texture of its own, as noise of a scanner has
        pixels = 1, height * task.upscale, width * task.upscale
        self._white = SliceNoise(seeds[0], position_mm, pixels, 0.0)
        self.fuses_latents = task.fuses_latents and len(self.corners) > 1
        self.z_lr: Tensor | None = None
        # ``Engine.draw`` gives a guess beside several draws
        self._num_latents = len(seeds) + (task.diffusion.gives_guess and len(seeds) > 1)
        if self.fuses_latents:
            self._fusion = Fusion(self._num_latents * canvas[0], *canvas[1:])
        else:
            self._fusion = Fusion(1 + (len(seeds) > 1), height * task.upscale, width * task.upscale)
        self._decoded: Tensor | None = None
        self._refined = torch.zeros(height // 2, width // 2, dtype=torch.bool)
        self._settled: Tensor | None = None
        self.seconds = time.monotonic() - began

    def afresh(self) -> "SliceJob":
        """The same slice with nothing done."""
        place = self.z, self._hu, self._position_mm
        again = SliceJob(self._task, self._seeds, *place, mean=self.mean, padding=self._padding)
        again._settled = self._settled
        return again

    @cached_property
    def own_difficulty(self) -> Tensor:
        """(h / 2, w / 2) of the quadtree of this slice alone."""
        return quadtree_of(self._task, self.lr[None, None]).difficulty[0]

    def settle(self, difficulty: Tensor) -> None:
        """Take another difficulty than the slice's own."""
        self._settled = difficulty

    @property
    def difficulty(self) -> Tensor:
        """(h / 2, w / 2) of the quadtree, as ``settle`` or the slice alone gives it."""
        return self.own_difficulty if self._settled is None else self._settled

    @property
    def num_draws(self) -> int:
        """Samples of the slice."""
        return len(self._seeds)

    @property
    def is_complete(self) -> bool:
        """Whether all tiles came back."""
        return self._missing == 0

    def tile_noise(self, y: int, x: int, k: int, draw: int) -> Tensor:
        """Noise k for the tile whose first LR pixel is (y, x), (c, h', w') at latent size."""
        return self.of_latent(self._noises[draw].draw(k), y, x)

    def of_latent(self, whole: Tensor, y: int, x: int) -> Tensor:
        """What a tile has of a map (c, h', w') of the slice, its first LR pixel at (y, x)."""
        (top, left), (height, width) = self._to_latent(y, x), self._to_latent(*self.tile_shape)
        return whole[:, top : top + height, left : left + width]

    @property
    def white(self) -> Tensor:
        """(1, h * upscale, w * upscale) standard normal, for the texture of the first draw."""
        return self._white.draw(TEXTURE_DRAW)

    def tile_white(self, y: int, x: int) -> Tensor:
        """What the tile whose first LR pixel is (y, x) has of it."""
        factor, (height, width) = self._task.upscale, self.tile_shape
        rows = slice(y * factor, (y + height) * factor)
        return self.white[:, rows, x * factor : (x + width) * factor]

    @property
    def refined(self) -> Tensor:
        """(h / 2, w / 2) cells that tiles refined so far."""
        return self._refined

    def add(self, tile: "Tile", maps: Tensor, refined: Tensor, seconds: float) -> None:
        """Take a tile's result in.

        Args:
            tile: which.
            maps: the latents of ``Engine.draw`` below each other (n * c, h', w'), or pixels as
                ``show`` takes them.
            refined: (h / 2, w / 2) bool.
            seconds: it took.
        """
        (y, x), (height, width) = (tile.y, tile.x), self.tile_shape
        self.is_finite &= bool(torch.isfinite(maps).all())
        factor = self._task.upscale
        corner = self._to_latent(y, x) if self.fuses_latents else (y * factor, x * factor)
        self._fusion.add(maps, *corner)
        area = (slice(y // 2, (y + height) // 2), slice(x // 2, (x + width) // 2))
        self._refined[area] |= refined
        self.seconds += seconds
        self._missing -= 1

    @property
    def latents(self) -> list[Tensor]:
        """The fused latents of ``Engine.draw``, (c, h', w') each; once all tiles are there."""
        return list(self._fusion.result().chunk(self._num_latents))

    def show(self, maps: Tensor, seconds: float) -> None:
        """Take what was decoded of the fused latents.

        Args:
            maps: the picture in [-1, 1], and with several draws their deviation in HU below it,
                (1 or 2, h * upscale, w * upscale).
            seconds: it took.
        """
        self.is_finite &= bool(torch.isfinite(maps).all())
        self._decoded = maps
        self.seconds += seconds

    def finish(self) -> EnhancedSlice:
        """The enhanced slice, once all tiles are there and decoded."""
        began = time.monotonic()
        window, upscale = self._task.hu_window, self._task.upscale
        height, width = self._hu.shape
        area = slice(height * upscale), slice(width * upscale)
        maps = self._fusion.result() if self._decoded is None else self._decoded
        sr = maps[0]
        if iterations := self._task.diffusion.consistency:
            lr = self.lr[None, None]
            sr = back_project(sr[None, None], lr, iterations=iterations)[0, 0]
        out = window.denormalize(sr[area])
        outside = torch.from_numpy(self._hu - window.clip(self._hu))
        if outside.any():
            # bilinear: a bicubic would draw a dark ring around metal
            out += functional.interpolate(
                outside[None, None], size=out.shape, mode="bilinear", align_corners=False
            )[0, 0]
        if self._task.diffusion.conserve_hu and self.is_finite:
            padding = None if self._padding is None else torch.from_numpy(self._padding)[None, None]
            lr_hu = torch.from_numpy(self._hu)[None, None]
            out = conserve(out[None, None], lr_hu, padding, floor_hu=window.low_hu)[0, 0]
        refined = self._refined[: math.ceil(height / 2), : math.ceil(width / 2)]
        deviation = maps[1][area].numpy() if len(maps) > 1 else None
        seconds = self.seconds + time.monotonic() - began
        return EnhancedSlice(self.z, out.numpy(), refined.numpy(), seconds, deviation)

    def _to_latent(self, y: int, x: int) -> tuple[int, int]:
        upscale, compression = self._task.upscale, self._task.autoencoder.compression
        return y * upscale // compression, x * upscale // compression


class Tile(NamedTuple):
    """A tile of a slice, its first LR pixel at (y, x)."""

    job: SliceJob
    y: int
    x: int

    @property
    def lr(self) -> Tensor:
        """(h, w) in [-1, 1]."""
        height, width = self.job.tile_shape
        return self.job.lr[self.y : self.y + height, self.x : self.x + width]

    @property
    def difficulty(self) -> Tensor:
        """(h / 2, w / 2) levels on which the cells are split."""
        height, width = self.job.tile_shape
        rows = slice(self.y // 2, (self.y + height) // 2)
        return self.job.difficulty[rows, self.x // 2 : (self.x + width) // 2]

    @property
    def z_lr(self) -> Tensor:
        """(c, h', w') of the whole slice's."""
        assert self.job.z_lr is not None  # whoever asks has set it
        return self.job.of_latent(self.job.z_lr, self.y, self.x)

    def noise(self, k: int, draw: int) -> Tensor:
        """Noise k of a draw, (c, h', w') on the CPU."""
        return self.job.tile_noise(self.y, self.x, k, draw)

    @property
    def white(self) -> Tensor:
        """Noise for the texture of the first draw, (1, h * upscale, w * upscale) on the CPU."""
        return self.job.tile_white(self.y, self.x)


def steadied(jobs: "Iterable[SliceJob]", pick: Literal["max", "median"]) -> "Iterator[SliceJob]":
    """The jobs, each with a difficulty that its neighbours have a say in."""
    before: SliceJob | None = None
    job: SliceJob | None = None
    for after in chain(jobs, [None]):
        if job is not None:
            near = [before or job, job, after or job]
            job.settle(steady(torch.stack([n.own_difficulty for n in near]), pick)[1])
            yield job
        before, job = job, after


def _pad_to_multiple(image: Tensor, unit: int) -> Tensor:
    """Repeat the last row and column until both sides are multiples of ``unit``."""
    height, width = image.shape
    padding = (0, -width % unit, 0, -height % unit)
    return functional.pad(image[None, None], padding, mode="replicate")[0, 0]
