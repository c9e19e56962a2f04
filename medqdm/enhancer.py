"""Enhancer: a loaded model that super-resolves slices of any size, tile by tile."""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from medqdm import checkpoint
from medqdm.config import Precision, Task, override
from medqdm.engine import Engine, autocast
from medqdm.errors import MedQDMError
from medqdm.tiling import Fusion, tile_starts
from medqdm.volume import Volume

TILES_PER_BATCH = {"cpu": 1, "cuda": 8}


@dataclass(frozen=True, eq=False)
class EnhancedSlice:
    """One slice of the output.

    Args:
        z: index of the slice in the volume.
        hu: ``(y * upscale, x * upscale)`` float32 in HU.
        refined: ``(ceil(y / 2), ceil(x / 2))`` bool: cells of 2 x 2 input pixels in which detail
            was synthesised by the downstream.
        seconds: time it took.
    """

    z: int
    hu: NDArray[np.float32]
    refined: NDArray[np.bool_]
    seconds: float


def choose_device(name: str) -> torch.device:
    """``auto`` (CUDA if there is one, else CPU), ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        MedQDMError: no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, number = name.partition(":")
    if kind not in {"cpu", "cuda"} or (number and not number.isdigit()):
        raise MedQDMError(f"--device: must be auto, cpu, cuda or cuda:N, got {name!r}")
    if kind == "cuda" and int(number or 0) >= torch.cuda.device_count():
        raise MedQDMError(
            f"--device {name}: must be a CUDA device of this machine, "
            f"got {torch.cuda.device_count()} devices; use --device cpu"
        )
    return torch.device(name)


class Enhancer:
    """A loaded model, ready for any number of volumes.

    Args:
        weights: a medqdm weights file.
        device: see ``choose_device``.
        precision: ``auto`` is bf16 where the device multiplies it in hardware.
        seed: of the noise; the noise of a slice depends on it and on the slice's index alone.
        overrides: ``key=value`` settings of the task that the weights carry.

    Raises:
        MedQDMError: the weights or the device do not fit.
    """

    def __init__(
        self,
        weights: Path,
        *,
        device: str = "auto",
        precision: Precision = "auto",
        seed: int = 0,
        overrides: Sequence[str] = (),
    ) -> None:
        loaded = checkpoint.load(weights)
        if loaded.qdm is None:
            raise MedQDMError(
                f"{weights}: must hold a whole model, got a KL-VAE alone; "
                "use the weights.safetensors of a finished run"
            )
        self.task: Task = override(loaded.task, overrides)
        self.record = loaded.record
        self.sha256 = loaded.sha256
        self.device = choose_device(device)
        self.precision: Precision = precision
        self.seed = seed
        self.engine = Engine(self.task, loaded.autoencoder, loaded.qdm).to(self.device).eval()
        # the inputs of its convolutions are channels-last (Engine), so are their weights
        self.engine.autoencoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @property
    def trained_spacing_mm(self) -> tuple[float, float] | None:
        """Smallest and largest LR pixel spacing of the training data, if recorded."""
        spacing = self.record.get("diffusion", {}).get("lr_spacing_mm")
        return (float(spacing[0]), float(spacing[1])) if spacing else None

    def warnings(self, volume: Volume) -> list[str]:
        """What a user should know before trusting the result, one sentence each."""
        found = list(volume.source.warnings)
        if self.trained_spacing_mm is not None:
            low, high = self.trained_spacing_mm
            spacing = volume.spacing_mm
            if min(spacing) < 0.9 * low or max(spacing) > 1.1 * high:
                found.append(
                    f"pixel spacing {spacing[0]:.3f} x {spacing[1]:.3f} mm is outside the "
                    f"{low:.3f} to {high:.3f} mm this model was trained on: "
                    "expect less detail, and check the result with care"
                )
        return found

    def slices(self, volume: Volume) -> Iterator[EnhancedSlice]:
        """Enhance slice by slice, in order.

        Raises:
            MedQDMError: the network gave NaN even in float32.
        """
        for z in range(len(volume.hu)):
            yield self.enhance_slice(volume.hu[z], z)

    def enhance_slice(self, hu: NDArray[np.float32], z: int = 0) -> EnhancedSlice:
        """Enhance one slice.

        Values outside the window pass by the network:
        ``out = denormalize(sr) + upsample(hu - clip(hu))``.

        Args:
            hu: ``(y, x)`` in HU, any size.
            z: index of the slice, which its noise depends on.
        """
        began = time.monotonic()
        window = self.task.hu_window
        sr, refined = self._super_resolve(torch.from_numpy(window.normalize(hu)), z)
        outside = torch.from_numpy(hu - window.clip(hu))
        out = window.denormalize(sr)
        if outside.any():
            # bilinear: a bicubic would draw a dark ring around metal
            out += functional.interpolate(
                outside[None, None], size=out.shape, mode="bilinear", align_corners=False
            )[0, 0]
        return EnhancedSlice(z, out.numpy(), refined.numpy(), time.monotonic() - began)

    def _super_resolve(self, lr: Tensor, z: int) -> tuple[Tensor, Tensor]:
        """(y, x) in [-1, 1] -> (y * s, x * s) in [-1, 1] and the refined cells."""
        attempts: tuple[Precision, ...] = (self.precision, "fp32")
        for precision in attempts:
            with autocast(self.device, precision):
                sr, refined = self._fuse_tiles(lr, z)
            if torch.isfinite(sr).all():
                return sr, refined
        raise MedQDMError(
            f"slice {z + 1}: the network's output must be finite, got NaN in fp32 too; "
            "the weights do not suit this input"
        )

    def _fuse_tiles(self, lr: Tensor, z: int) -> tuple[Tensor, Tensor]:
        task = self.task
        height, width = lr.shape
        unit, tile = task.lr_multiple, task.tile_lr_px
        padded = _pad_to_multiple(lr, unit)
        tile_h, tile_w = min(tile, padded.shape[0]), min(tile, padded.shape[1])
        stride = tile - tile // 8 // 2 * 2  # 112 of 128, and even: whole cells
        corners = [
            (y, x)
            for y in tile_starts(padded.shape[0], tile_h, min(stride, tile_h))
            for x in tile_starts(padded.shape[1], tile_w, min(stride, tile_w))
        ]
        canvas = SliceNoise(self.seed, z, self._latent_shape(padded.shape))
        fusion = Fusion(padded.shape[0] * task.upscale, padded.shape[1] * task.upscale)
        refined = torch.zeros(padded.shape[0] // 2, padded.shape[1] // 2, dtype=torch.bool)
        batch = TILES_PER_BATCH[self.device.type]
        for start in range(0, len(corners), batch):
            group = corners[start : start + batch]
            tiles = torch.stack([padded[y : y + tile_h, x : x + tile_w] for y, x in group])
            noise = partial(self._tile_noise, canvas, group, (tile_h, tile_w))
            result = self.engine.enhance(tiles[:, None].to(self.device), noise)
            for (y, x), sr, cells in zip(group, result.sr, result.refined, strict=True):
                fusion.add(sr[0], y * task.upscale, x * task.upscale)
                area = (slice(y // 2, (y + tile_h) // 2), slice(x // 2, (x + tile_w) // 2))
                refined[area] |= cells.cpu()
        whole = fusion.result()[: height * task.upscale, : width * task.upscale]
        return whole, refined[: math.ceil(height / 2), : math.ceil(width / 2)]

    def _latent_shape(self, lr_shape: Sequence[int]) -> tuple[int, int, int]:
        section = self.task.autoencoder
        sides = [side * self.task.upscale // section.compression for side in lr_shape]
        return section.latent_channels, sides[0], sides[1]

    def _tile_noise(
        self,
        canvas: "SliceNoise",
        corners: Sequence[tuple[int, int]],
        size: tuple[int, int],
        k: int,
    ) -> Tensor:
        _, h, w = self._latent_shape(size)
        starts = [self._latent_shape(corner)[1:] for corner in corners]
        noise = canvas.draw(k)
        return torch.stack([noise[:, y : y + h, x : x + w] for y, x in starts]).to(self.device)

    def estimate_seconds(self, volume: Volume) -> float:
        """Rough time for a volume: its middle slice's middle tile, timed, times all tiles."""
        tile = self.task.tile_lr_px
        _, height, width = volume.shape
        y, x = max(0, (height - tile) // 2), max(0, (width - tile) // 2)
        hu = volume.hu[len(volume.hu) // 2, y : y + tile, x : x + tile]
        self.enhance_slice(hu)  # the first call also plans memory and kernels
        seconds = self.enhance_slice(hu).seconds
        stride = tile - tile // 8 // 2 * 2
        tiles = len(tile_starts(height, tile, stride)) * len(tile_starts(width, tile, stride))
        return seconds * tiles * len(volume.hu)


class SliceNoise:
    """Standard normal noise on the latent canvas of a whole slice.

    Tiles cut theirs out of it, so that overlapping tiles agree. Draw k of slice z depends on
    (seed, z, k) alone: not on tiles, batches, devices or what was enhanced before.

    Args:
        seed: of the run.
        z: index of the slice.
        shape: (c, h, w) of the canvas.
    """

    def __init__(self, seed: int, z: int, shape: tuple[int, int, int]) -> None:
        self._entropy = (seed, z)
        self._shape = shape
        self._draws: dict[int, Tensor] = {}

    def draw(self, k: int) -> Tensor:
        """Draw k, (c, h, w) float32 on the CPU."""
        if k not in self._draws:
            state = np.random.SeedSequence((*self._entropy, k)).generate_state(1, np.uint64)
            generator = torch.Generator().manual_seed(int(state[0] >> np.uint64(1)))
            self._draws[k] = torch.randn(self._shape, generator=generator)
        return self._draws[k]


def _pad_to_multiple(image: Tensor, unit: int) -> Tensor:
    """Repeat the last row and column until both sides are multiples of ``unit``."""
    height, width = image.shape
    padding = (0, -width % unit, 0, -height % unit)
    return functional.pad(image[None, None], padding, mode="replicate")[0, 0]
