"""The record of a run: its figures, and what run.json and the DICOM header say of it."""

import math
import platform
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from medqdm import metrics
from medqdm.diffusion.conservation import largest_flat_shift
from medqdm.enhancer import Enhancer
from medqdm.jobs import EnhancedSlice
from medqdm.version import __version__
from medqdm.volume import Volume


@dataclass
class Summary:
    """What a run did, in numbers; grows with each slice.

    ``mean_shift_hu`` and ``lr_consistency_hu`` compare the output, reduced by area to the input's
    grid, with the input. ``flat_shift`` is the largest shift of a flat area in HU and the area's
    slice, row and column. ``redone`` counts the slices that were not finite in bf16. ``finished``
    holds the figures of an earlier run where there was nothing left to do. ``left_out`` counts
    images of the series that are not in the output, see ``volume.Source``.
    """

    num_slices: int = 0
    seconds: float = 0.0
    refined_cells: int = 0
    cells: int = 0
    shift_sum_hu: float = 0.0
    square_sum_hu: float = 0.0
    voxels: int = 0
    flat_shift: tuple[float, int, int, int] | None = None
    clipped: int = 0
    redone: int = 0
    left_out: int = 0
    warnings: list[str] = field(default_factory=list)
    finished: dict[str, Any] | None = None

    def add(
        self,
        done: EnhancedSlice,
        lr_hu: NDArray[np.float32],
        padding: NDArray[np.bool_] | None = None,
    ) -> None:
        """Count one more slice.

        Args:
            done: the output.
            lr_hu: ``(y, x)`` input in HU.
            padding: ``(y, x)`` where the input holds padding.
        """
        difference = metrics.lr_difference_hu(done.hu, lr_hu)
        self.num_slices += 1
        self.seconds += done.seconds
        self.refined_cells += int(done.refined.sum())
        self.cells += done.refined.size
        self.shift_sum_hu += float(difference.sum())
        self.square_sum_hu += float((difference**2).sum())
        self.voxels += difference.size
        images = difference.astype(np.float32), lr_hu, *(() if padding is None else (padding,))
        found = largest_flat_shift(*(torch.from_numpy(image)[None, None] for image in images))
        if found and (self.flat_shift is None or abs(found.hu) > abs(self.flat_shift[0])):
            self.flat_shift = (found.hu, done.z, found.y, found.x)

    def numbers(self) -> dict[str, Any]:
        """The summary's figures under the names of run.json."""
        if self.finished is not None:
            return dict(self.finished)
        return {
            "slices": self.num_slices,
            "seconds_per_slice": round(self.seconds / max(1, self.num_slices), 3),
            "share_refined": round(self.refined_cells / max(1, self.cells), 4),
            "mean_shift_hu": round(self.shift_sum_hu / max(1, self.voxels), 3),
            "lr_consistency_hu": round((self.square_sum_hu / max(1, self.voxels)) ** 0.5, 3),
            "clipped_voxels": self.clipped,
            **self._flat_shift(),
        }

    def _flat_shift(self) -> dict[str, Any]:
        """The largest shift of a flat area, and the area's centre, counted from 1."""
        if self.flat_shift is None:
            return {"flat_shift_hu": None, "flat_shift_place": "no flat area"}
        hu, z, y, x = self.flat_shift
        place = f"slice {z + 1}, row {y + 1}, column {x + 1}"
        return {"flat_shift_hu": round(hu, 1), "flat_shift_place": place}

    def count_redone(self, slices: int) -> None:
        """Note how many slices bf16 failed on, and warn if there are any."""
        self.redone = slices
        if slices:
            self.warnings.append(f"{slices} slice(s) overflowed in bf16 and were done in fp32")


def describe(enhancer: Enhancer) -> str:
    """The DICOM DerivationDescription: method, version, weights and settings; no paths."""
    task = enhancer.task
    sampler = task.diffusion.sampler
    consistency = ", drawn nearer to the input" if task.diffusion.consistency else ""
    conserved = ", HU of flat regions conserved" if task.diffusion.conserve_hu else ""
    mean = f", mean of {enhancer.draws} draws" if enhancer.mean else ""
    has_noise = enhancer.engine.spread_of_draws is not None
    steps_taken = task.diffusion.told(mean=enhancer.mean, has_noise=has_noise)
    return (
        f"In-plane x{task.upscale} super-resolution by a quadtree diffusion model; detail is "
        f"synthetic. medqdm {__version__}, task {task.name}, weights sha256:{enhancer.sha256}, "
        f"seed {enhancer.seed}, sampler {sampler.name}, {steps_taken}{mean}{consistency}, "
        f"s {task.quadtree.threshold:g} ({task.threshold_hu:g} HU), "
        f"{enhancer.device.type} {enhancer.precision}{conserved}"
    )


def run_record(
    enhancer: Enhancer, volume: Volume, summary: Summary, file_format: str
) -> dict[str, Any]:
    """What ``run.json`` holds: versions, model, settings and figures; nothing of the patient."""
    return {
        "medqdm": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": str(enhancer.device),
        "precision": {
            "asked": enhancer.asked_precision,
            "used": enhancer.precision,
            "bf16_shift_q999_hu": _rounded(enhancer.bf16_shift_q999_hu),
            "slices_redone_in_fp32": summary.redone,
        },
        "batch_size": enhancer.batch_size,
        "seed": enhancer.seed,
        "draws": enhancer.draws,
        "spread": enhancer.engine.spread_of_draws is not None,
        "mean": enhancer.mean,
        "weights_sha256": enhancer.sha256,
        "task": enhancer.task.model_dump(mode="json", exclude={"training"}),
        "threshold_hu": enhancer.task.threshold_hu,
        "input": {
            "kind": volume.source.kind,
            "shape_zyx": list(volume.shape),
            "spacing_yx_mm": list(volume.spacing_mm),
            "left_out": volume.source.left_out,
        },
        "output": {"format": file_format, "upscale": enhancer.task.upscale},
        "summary": summary.numbers(),
        "warnings": summary.warnings,
    }


def _rounded(shift_hu: float | None) -> float | None:
    """For JSON, which has no NaN."""
    return None if shift_hu is None or math.isnan(shift_hu) else round(shift_hu, 4)
