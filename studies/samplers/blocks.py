"""Blocks: runs of neighbouring slices, one a patient, each under one degradation."""

import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from medqdm import degrade, metrics
from medqdm.config import Task
from medqdm.data import Patient, find_patients, is_prepared
from medqdm.data.slices import sample_seed, to_hr_slices
from medqdm.errors import MedQDMError
from medqdm.evaluate.regions import body_mask, read_volume
from medqdm.volume import Volume
from medqdm.window import Window

log = logging.getLogger(__name__)

Image = NDArray[np.float32]
SLICES_PER_PATIENT = 16
_NOISE_SEEDS = 2**31


@dataclass(frozen=True, eq=False)
class Block:
    """Neighbouring slices of a patient as truth and as input, and what is known of the truth.

    Args:
        patient: folder or file name of the patient.
        first: number of the first slice in its volume, from 0.
        hr_hu: ``(z, y, x)`` truth, clipped to the window.
        lr: the input, ``(z, y / upscale, x / upscale)``, at the slices' own positions.
        window: of the task.
        spacing_mm: of the HR pixels, mean of y and x.
        degradation: what was drawn for all of its slices; their noise alone differs.
    """

    patient: str
    first: int
    hr_hu: Image
    lr: Volume
    window: Window
    spacing_mm: float
    degradation: degrade.DegradationParams

    def __len__(self) -> int:
        return len(self.hr_hu)

    @cached_property
    def body(self) -> NDArray[np.bool_]:
        """``(z, y, x)`` body mask, slice by slice."""
        return np.stack([body_mask(hu, self.window) for hu in self.hr_hu])

    @cached_property
    def edges(self) -> list[metrics.Edges]:
        """Strong edges of each slice."""
        return [metrics.find_edges(hu) for hu in self.hr_hu]

    @cached_property
    def edge_rise_px(self) -> float:
        """The truth's own edge rise; NaN without strong edges."""
        return self.rise_px(self.hr_hu)

    @cached_property
    def flicker_hu(self) -> float:
        """The truth's own difference from slice to slice in HU."""
        return metrics.flicker_hu(self.hr_hu)

    def rise_px(self, stack_hu: Image) -> float:
        """Median rise of a stack at all strong edges of the truth, in pixels; NaN without any."""
        rises = np.concatenate(
            [
                metrics.edge_rises_px(hu, edges)
                for hu, edges in zip(stack_hu, self.edges, strict=True)
            ]
        )
        return float(np.median(rises)) if len(rises) else float("nan")

    def about(self) -> dict[str, Any]:
        """Which slices these are and how they were degraded, as JSON."""
        return {
            "slices": [self.first, self.first + len(self) - 1],
            "degradation": asdict(self.degradation),
        }


def open_blocks(task: Task, data: Path, *, limit: int | None, seed: int) -> list[Block]:
    """The middle slices of each patient's first volume; a single slice is left out.

    All slices of a block get the same blur, resizes, kind and strength of noise and JPEG quality,
    drawn once from ``test_degradation``: with a draw for each slice, as in training, the input
    itself would flicker. The noise differs from slice to slice.

    Args:
        task: sizes, window and ``test_degradation``.
        data: folder of volumes, see ``find_patients``.
        limit: slices at the most, evenly over the patients; None: 16 a patient.
        seed: of the degradations.

    Raises:
        MedQDMError: a prepared set, whose slices are no neighbours; no volumes of two slices or
            more; or a limit of one.
    """
    if is_prepared(data):
        raise MedQDMError(
            f"{data}: must be a folder of volumes to compare samplers, got a prepared set, whose "
            "slices are no neighbours; give the volumes that it was made from"
        )
    if limit is not None and limit < 2:
        raise MedQDMError(
            f"--limit: must be 2 slices or more to compare samplers, got {limit}; neighbouring "
            "slices are compared"
        )
    patients = find_patients(data)
    counts = _shares(len(patients), limit)
    blocks = []
    for patient, count in zip(patients, counts, strict=False):
        block = _block(task, patient, count, seed)
        if len(block) > 1:
            blocks.append(block)
        else:
            log.warning("%s has a single slice and so no neighbours; left out", patient.name)
    if not blocks:
        raise MedQDMError(
            f"{data}: must hold a volume of 2 slices or more to compare samplers, got none; "
            "give whole volumes"
        )
    return blocks


def _shares(num_patients: int, limit: int | None) -> list[int]:
    """Slices of each patient, two or more; of the first patients alone if the limit is small."""
    if limit is None:
        return [SLICES_PER_PATIENT] * num_patients
    num = min(num_patients, limit // 2)
    return [limit // num + (k < limit % num) for k in range(num)]


def _block(task: Task, patient: Patient, count: int, seed: int) -> Block:
    volume = read_volume(*patient.volumes[0])
    first = max(0, (len(volume.hu) - count) // 2)
    kept = range(first, min(first + count, len(volume.hu)))
    volume = replace(
        volume,
        hu=np.stack([volume.hu[z] for z in kept]),
        origins_mm=volume.origins_mm[kept.start : kept.stop],
        padding=None,
    )
    slices, spacing_mm = to_hr_slices(volume, task.slice_px)
    hr_hu = task.hu_window.clip(slices.astype(np.float32))
    random = np.random.RandomState(sample_seed(patient.name, first, seed))
    params = degrade.draw(task.test_degradation, random)
    lr_hu = np.stack(list(_degraded(task, hr_hu, params, random)))
    return Block(
        patient=patient.name,
        first=first,
        hr_hu=hr_hu,
        lr=_placed(lr_hu, volume, spacing_mm * task.upscale),
        window=task.hu_window,
        spacing_mm=float(spacing_mm.mean()),
        degradation=params,
    )


def _degraded(
    task: Task, hr_hu: Image, params: degrade.DegradationParams, random: np.random.RandomState
) -> Iterator[Image]:
    for hu in hr_hu:
        noisy = replace(params, noise_seed=int(random.randint(_NOISE_SEEDS)))
        hr = torch.from_numpy(task.hu_window.normalize(hu))[None]
        yield task.hu_window.denormalize(degrade.degrade(hr, noisy, task.upscale)[0].numpy())


def _placed(lr_hu: Image, volume: Volume, spacing_mm: NDArray[np.float64]) -> Volume:
    """LR slices where the volume's slices lie, their middles the same."""
    y, x = (
        step * (new / old)
        for step, new, old in zip(
            (volume.y_step_mm, volume.x_step_mm), spacing_mm, volume.spacing_mm, strict=True
        )
    )
    (_, tall, wide), (_, height, width) = volume.shape, lr_hu.shape
    middle = volume.origins_mm + (tall - 1) / 2 * volume.y_step_mm
    middle = middle + (wide - 1) / 2 * volume.x_step_mm
    origins = middle - (height - 1) / 2 * y - (width - 1) / 2 * x
    return Volume(lr_hu, origins, x, y)
