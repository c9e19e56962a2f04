"""Enhancer: a loaded model that super-resolves slices of any size, tile by tile.

Tiles of all the slices of a volume have one shape and go through the network in batches, in order
(``tiles``); the slices are read ahead and put together behind it by other threads.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from numpy.typing import NDArray

from medqdm.config import Precision, Task
from medqdm.device import choose_device, is_bf16_fast
from medqdm.errors import MedQDMError
from medqdm.jobs import EnhancedSlice, SliceJob, steadied
from medqdm.opened import Opened, open_engine
from medqdm.streaming import map_behind, prefetch
from medqdm.tiles import TileBatches
from medqdm.volume import ENHANCED_BEFORE, Volume

TILES_PER_BATCH = {"cpu": 1, "cuda": 8}  # until a GPU's free memory is known
MOST_TILES = 64  # beyond, a larger batch only costs memory
LARGEST_BATCH = 1024  # that a caller may ask for: the slices of a batch are held in memory
MOST_DRAWS = 256  # of a slice, which are held in memory
MEMORY_SHARE = 0.6  # of what is free: other tiles hold more detail than the measured one
BF16_TOLERANCE_HU = 15.0  # of the difference to fp32 that BF16_SHARE of the pixels stay within
BF16_SHARE = 0.999
CHECK_LR_PX = 64  # side of the crop on which precision, speed and memory are measured
SLICES_AHEAD = 2  # read before the network needs them


class Enhancer:
    """A loaded model, ready for any number of volumes.

    Args:
        weights: a medqdm weights file, or what was opened of one.
        device: see ``choose_device``.
        precision: ``fp32``, ``bf16``, or ``auto``: bf16 where the device multiplies it in hardware
            and on a crop of the middle slice 99.9 % of the pixels stay within 15 HU of fp32.
        seed: of the noise, 0 to 2^63 - 1; a slice's noise depends on it and on the slice's place
            alone.
        overrides: ``key=value`` settings of the task that the weights carry.
        batch_size: tiles that the network gets at once; None: one on a CPU, and on a GPU as many
            as its free memory holds; 1024 at the most. Halved when memory runs out.
        draws: samples per slice, 256 at the most, with seed, seed + 1, ...: the first is the
            output, and from two on their standard deviation is given with it. Where the task's one
            step is its best guess (``diffusion.one_step``), the guess is the output, and draws take
            4 steps.
        mean: the output is the mean of the draws instead.

    Attributes:
        precision: the one in use, ``fp32`` or ``bf16``.
        bf16_shift_q999_hu: 99.9 % quantile of the absolute difference of bf16 and fp32 in HU that
            the check found on a crop of the last volume's middle slice, NaN if bf16 gave a pixel
            that is not finite; None where nothing was checked.
        redone: slices of the last volume that were not finite in bf16 and were done in fp32.

    Raises:
        MedQDMError: the weights, the device or a setting do not fit.
    """

    bf16_shift_q999_hu: float | None = None

    def __init__(
        self,
        weights: Path | Opened,
        *,
        device: str = "auto",
        precision: Precision = "auto",
        seed: int = 0,
        overrides: Sequence[str] = (),
        batch_size: int | None = None,
        draws: int = 1,
        mean: bool = False,
    ) -> None:
        for option, value, low, high in (
            ("--uncertainty", draws, 1, MOST_DRAWS),
            ("--batch-size", 1 if batch_size is None else batch_size, 1, LARGEST_BATCH),
            ("--seed", seed, 0, 2**63 - 1),
        ):
            if not low <= value <= high:
                raise MedQDMError(f"{option}: must be {low} to {high}, got {value}; change it")
        if precision not in get_args(Precision):
            raise MedQDMError(f"--precision: must be auto, fp32 or bf16, got {precision!r}")
        opened = open_engine(weights, overrides) if isinstance(weights, Path) else weights
        engine, self.record, self.sha256 = opened
        self.task: Task = engine.task
        self.device = choose_device(device)
        self.asked_precision: Precision = precision
        self.precision: Precision = self._wanted_precision()
        self.seed = seed
        self.draws = draws
        self.mean = mean
        self.redone: set[int] = set()
        self._finds_batch_size = batch_size is None and self.device.type == "cuda"
        self._prepared: Volume | None = None
        self._seconds_per_px = 0.0
        self.engine = engine.to(self.device)
        size = batch_size or TILES_PER_BATCH[self.device.type]
        self._batches = TileBatches(self.engine, self.device, batch_size=size)

    @property
    def batch_size(self) -> int:
        """Tiles that the network gets at once."""
        return self._batches.batch_size

    @batch_size.setter
    def batch_size(self, tiles: int) -> None:
        self._batches.batch_size = tiles

    def _wanted_precision(self) -> Precision:
        if self.asked_precision == "auto":
            return "bf16" if is_bf16_fast(self.device) else "fp32"
        return self.asked_precision

    @property
    def trained_spacing_mm(self) -> tuple[float, float] | None:
        """Smallest and largest LR pixel spacing of the training data, if recorded."""
        spacing = self.record.get("diffusion", {}).get("lr_spacing_mm")
        return (float(spacing[0]), float(spacing[1])) if spacing else None

    def warnings(self, volume: Volume) -> list[str]:
        """What a user should know before trusting the result, one sentence each."""
        found = list(volume.source.warnings)
        if volume.source.is_enhanced:
            found.append(ENHANCED_BEFORE)
        if self.trained_spacing_mm is not None:
            low, high = self.trained_spacing_mm
            spacing = volume.spacing_mm
            if min(spacing) < 0.9 * low or max(spacing) > 1.1 * high:
                found.append(
                    f"pixel spacing {spacing[0]:.3f} x {spacing[1]:.3f} mm is outside the "
                    f"{low:.3f} to {high:.3f} mm this model was trained on: "
                    "expect less detail, and check the result with care"
                )
        if self.draws > 1 and self.engine.spread_of_draws is None:
            found.append(
                "the deviation over draws is what chance did, not how far the output may be off: "
                "these weights or settings have no spread (medqdm train-spread)"
            )
        return found + (self._precision_warnings() if self._prepared is volume else [])

    def _precision_warnings(self) -> list[str]:
        shift = self.bf16_shift_q999_hu
        if shift is None or shift <= BF16_TOLERANCE_HU:
            return []
        share = f"{100 * BF16_SHARE:g} %"
        what = (
            "gives no finite result"
            if math.isnan(shift)
            else f"keeps {share} of the pixels within {shift:.2f} HU of fp32"
        )
        then = "fp32 is used" if self.precision == "fp32" else "it is used as asked"
        return [
            f"bf16 {what} on a crop of this series ({share} within {BF16_TOLERANCE_HU:g} HU are "
            f"fine); {then}"
        ]

    def prepare(self, volume: Volume) -> None:
        """Choose precision and batch size, and measure speed, on a crop of the volume's middle.

        Args:
            volume: the one to be enhanced next; a second call for it does nothing.

        Raises:
            MedQDMError: the crop does not fit into memory.
        """
        if self._prepared is volume:
            return
        self.precision, self.redone = self._wanted_precision(), set()
        self.bf16_shift_q999_hu = None
        unit = self.task.lr_multiple
        side = max(unit, min(CHECK_LR_PX, self.task.tile_lr_px) // unit * unit)
        crop = _middle(volume.hu[len(volume.hu) // 2], side)
        if self.precision == "bf16":
            self._check_bf16(crop)  # these first calls also plan memory and kernels
        else:
            self._run_crop(crop, self.precision)
        if self._finds_batch_size:
            torch.cuda.reset_peak_memory_stats(self.device)
            before = torch.cuda.memory_allocated(self.device)
        timed = self._run_crop(crop, self.precision)
        self._seconds_per_px = timed.seconds / timed.lr.numel()
        if self._finds_batch_size:
            peak = torch.cuda.max_memory_allocated(self.device) - before
            self.batch_size = self._tiles_that_fit(peak / timed.lr.numel())
        self._prepared = volume

    def slices(self, volume: Volume) -> Iterator[EnhancedSlice]:
        """Enhance slice by slice, in order.

        Args:
            volume: the slices.

        Raises:
            MedQDMError: the network gave NaN even in float32, or one tile does not fit into memory.
        """
        self.prepare(volume)
        positions = volume.positions_mm.tolist()
        masks = volume.padding
        pairs = ((hu, None if masks is None else masks[z]) for z, hu in enumerate(volume.hu))
        with closing(prefetch(pairs, SLICES_AHEAD)) as images:
            jobs: Iterator[SliceJob] = (
                self._job(z, hu, positions[z], padding) for z, (hu, padding) in enumerate(images)
            )
            if self.task.diffusion.sampler.steady != "none":
                jobs = steadied(jobs, self.task.diffusion.sampler.steady)
            yield from map_behind(SliceJob.finish, self._run(jobs), 1)

    def enhance_slice(
        self, hu: NDArray[np.float32], z: int = 0, *, position_mm: float | None = None
    ) -> EnhancedSlice:
        """Enhance one slice, as if it had no neighbours.

        Values outside the window pass by the network:
        ``out = denormalize(sr) + upsample(hu - clip(hu))``. Flat regions then get the input's mean
        back (``diffusion.conservation``).

        Args:
            hu: ``(y, x)`` in HU, any size.
            z: index of the slice.
            position_mm: of the slice along the normal (``Volume.positions_mm``), on which its
                noise depends; None: z, as if slices lay 1 mm apart.
        """
        position_mm = float(z) if position_mm is None else position_mm
        (job,) = self._run([self._job(z, hu, position_mm)])
        return job.finish()

    def _job(
        self,
        z: int,
        hu: NDArray[np.float32],
        position_mm: float,
        padding: NDArray[np.bool_] | None = None,
    ) -> SliceJob:
        seeds = range(self.seed, self.seed + self.draws)
        return SliceJob(self.task, seeds, z, hu, position_mm, mean=self.mean, padding=padding)

    def estimate_seconds(self, volume: Volume) -> float:
        """Rough time for a volume, from the speed on its middle (see ``prepare``)."""
        self.prepare(volume)
        _, height, width = volume.shape
        job = self._job(0, np.zeros((height, width), dtype=np.float32), 0.0)
        px = len(job.corners) * math.prod(job.tile_shape)
        return self._seconds_per_px * px * len(volume.hu)

    def _run(self, jobs: Iterable[SliceJob]) -> Iterator[SliceJob]:
        """The jobs with all their tiles done, each in fp32 if it was not finite in bf16."""
        for job in self._batches.complete(jobs, self.precision):
            if job.is_finite:
                yield job
            else:
                yield self._redo(job)

    def _redo(self, job: SliceJob) -> SliceJob:
        again = job
        if self.precision != "fp32":
            self.redone.add(job.z)
            (again,) = self._batches.complete([job.afresh()], "fp32")
        if not again.is_finite:
            raise MedQDMError(
                f"slice {job.z + 1}: the network's output must be finite, got NaN in fp32 too; "
                "the weights do not suit this input"
            )
        return again

    def _check_bf16(self, crop: NDArray[np.float32]) -> None:
        precisions: tuple[Precision, ...] = ("fp32", "bf16")
        found = [self._run_crop(crop, precision).finish().hu for precision in precisions]
        shifts = np.abs(found[0] - found[1])
        is_finite = bool(np.isfinite(shifts).all())
        shift = float(np.quantile(shifts, BF16_SHARE)) if is_finite else math.nan
        self.bf16_shift_q999_hu = shift
        if self.asked_precision == "auto" and not shift <= BF16_TOLERANCE_HU:
            self.precision = "fp32"

    def _run_crop(self, crop: NDArray[np.float32], precision: Precision) -> SliceJob:
        (job,) = self._batches.complete([self._job(0, crop, 0.0)], precision)
        return job

    def _tiles_that_fit(self, bytes_per_px: float) -> int:
        """Tiles for which the GPU has memory, free or held by torch's own cache."""
        free, _ = torch.cuda.mem_get_info(self.device)
        free += torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
        tiles = MEMORY_SHARE * free / (bytes_per_px * self.task.tile_lr_px**2)
        return max(1, min(MOST_TILES, int(tiles)))


def _middle(image: NDArray[np.float32], side: int) -> NDArray[np.float32]:
    """The square of ``side`` pixels in the middle of a slice, cut to the slice."""
    y, x = (max(0, (length - side) // 2) for length in image.shape)
    return image[y : y + side, x : x + side]
