"""Samples: MONAI transforms from a patient's slice to HR and LR, and the data sets of them."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from monai.transforms import (
    Compose,
    EnsureTyped,
    MapTransform,
    RandFlipd,
    RandomizableTransform,
    RandRotate90d,
    RandSpatialCropd,
    Transform,
)
from torch import Tensor
from torch.utils.data import Dataset

from medqdm.config import Task
from medqdm.data.slices import AIR_HU, CROP_LIMIT, Patient, area_weights, load_slices, sample_seed
from medqdm.degrade import DegradationParams, DegradeD
from medqdm.errors import MedQDMError
from medqdm.window import Window

Stage = Literal["autoencoder", "diffusion", "regions", "spread", "regression"]
# each stage has random numbers of its own; the last two are never of one run
_STREAMS: dict[Stage, int] = {
    "autoencoder": 0, "diffusion": 1, "regions": 3, "spread": 4, "regression": 4,
}  # fmt: skip


class LoadSliceD(Transform):
    """``{"patient": Patient, "slice": int}`` to HR HU ``(1, px, px)``, by way of the RAM cache.

    Args:
        slice_px: side of a slice.
    """

    def __init__(self, slice_px: int) -> None:
        self.slice_px = slice_px

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """The sample with ``hr`` in HU, ``spacing_mm`` (mean of y and x) and the patient's name."""
        patient, index = data["patient"], data["slice"]
        slices = load_slices(patient, self.slice_px)
        return {
            "hr": torch.from_numpy(slices.hu[index].astype(np.float32))[None],
            "patient": patient.name,
            "slice": index,
            "spacing_mm": float(slices.spacing_mm[index].mean()),
        }


class WindowD(MapTransform):
    """HU to [-1, 1], clipped.

    Args:
        keys: images in HU.
        window: the task's.
    """

    def __init__(self, keys: Sequence[str], window: Window) -> None:
        super().__init__(keys)
        self.window = window

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """The sample with its images in [-1, 1]."""
        sample = dict(data)
        for key in self.key_iterator(sample):
            sample[key] = self.window.normalize(sample[key])
        return sample


class RandReduceD(RandomizableTransform, MapTransform):
    """Reduce an image by area, by a factor of chance, and continue it by air where it is too small.

    Args:
        keys: images ``(1, h, w)`` in HU; ``spacing_mm`` goes along.
        prob: share of samples that are reduced.
        largest: largest factor; the smallest is ``CROP_LIMIT``, below which reducing blurs.
        least_px: sides that an image must have at the least.
    """

    def __init__(self, keys: Sequence[str], prob: float, *, largest: float, least_px: int) -> None:
        RandomizableTransform.__init__(self, prob)
        MapTransform.__init__(self, keys)
        self.largest = largest
        self.least_px = least_px
        self._factor = largest
        self._place = (0.0, 0.0)

    def randomize(self, data: Any = None) -> None:
        """Draw the next factor, and where the image will lie, as shares of the air around it."""
        super().randomize(data)
        self._factor = CROP_LIMIT * (self.largest / CROP_LIMIT) ** self.R.uniform()
        self._place = (self.R.uniform(), self.R.uniform())

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """The sample with its images reduced and ``spacing_mm`` as it is then, or as it was."""
        self.randomize()
        sample = dict(data)
        if self._do_transform:
            for key in self.key_iterator(sample):
                side = sample[key].shape[-1]
                sample[key] = self._reduced(sample[key])
            sample["spacing_mm"] *= side / self._reduced_px(side)
        return sample

    def _reduced_px(self, side: int) -> int:
        return max(1, round(side / self._factor))

    def _reduced(self, image: Tensor) -> Tensor:
        sides = image.shape[-2:]
        rows, columns = (
            torch.from_numpy(area_weights(side, self._reduced_px(side))) for side in sides
        )
        reduced = rows @ image @ columns.T
        height, width = (max(side, self.least_px) for side in reduced.shape[-2:])
        canvas = torch.full((1, height, width), float(AIR_HU))
        y, x = (
            round(share * (length - side))
            for share, length, side in zip(
                self._place, (height, width), reduced.shape[-2:], strict=True
            )
        )
        canvas[:, y : y + reduced.shape[-2], x : x + reduced.shape[-1]] = reduced
        return canvas


class RandShiftD(RandomizableTransform, MapTransform):
    """Move an image by up to half its sides, continued by its mirror image.

    Args:
        keys: images ``(1, h, w)``.
        prob: share of samples that are moved.
    """

    def __init__(self, keys: Sequence[str], prob: float) -> None:
        RandomizableTransform.__init__(self, prob)
        MapTransform.__init__(self, keys)
        self._moves = (0.0, 0.0)

    def randomize(self, data: Any = None) -> None:
        """Draw the next move, as shares of the sides."""
        super().randomize(data)
        self._moves = (self.R.uniform(-0.5, 0.5), self.R.uniform(-0.5, 0.5))

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """The sample with its images moved, or as it was."""
        self.randomize()
        sample = dict(data)
        if self._do_transform:
            for key in self.key_iterator(sample):
                for axis, move in zip((-2, -1), self._moves, strict=True):
                    sample[key] = _moved(sample[key], axis, move)
        return sample


def _moved(image: Tensor, axis: int, move: float) -> Tensor:
    length = image.shape[axis]
    mirrored = np.pad(np.arange(length), length, mode="symmetric")
    first = length + round(move * length)
    return image.index_select(axis, torch.from_numpy(mirrored[first : first + length]))


def train_transforms(task: Task, stage: Stage) -> Compose:
    """``{"patient", "slice"}`` to a training sample: load, reduce, window, shift, crop, degrade.

    Args:
        task: sizes, window and ``degradation``.
        stage: whose crop size.

    Raises:
        MedQDMError: the crop does not divide into LR pixels and latents.
    """
    crop = _crop_px(task, stage)
    reduce, shift = task.training.reduce_probability, task.training.shift_probability
    largest = task.training.largest_reduction
    cropping = [RandSpatialCropd("hr", (crop, crop), random_size=False)]
    return Compose(
        [
            LoadSliceD(task.slice_px),
            *([RandReduceD(["hr"], reduce, largest=largest, least_px=crop)] if reduce else []),
            WindowD(["hr"], task.hu_window),
            *([RandShiftD(["hr"], shift)] if shift else []),
            *(cropping if crop < task.slice_px else []),
            *_flips(task),
            DegradeD(task.training_degradations, upscale=task.upscale),
            EnsureTyped(["hr", "lr"], track_meta=False),
        ]
    )


def _flips(task: Task) -> list[Transform]:
    flips: list[Transform] = [RandFlipd("hr", prob=0.5, spatial_axis=1)]
    if task.training.flips == "all":
        flips += [RandFlipd("hr", prob=0.5, spatial_axis=0), RandRotate90d("hr", prob=0.5, max_k=1)]
    return flips


def evaluation_transforms(task: Task) -> Compose:
    """``{"patient", "slice"}`` to a whole slice with ``test_degradation``."""
    return Compose(
        [
            LoadSliceD(task.slice_px),
            WindowD(["hr"], task.hu_window),
            DegradeD([(task.test_degradation, 1.0)], upscale=task.upscale),
            EnsureTyped(["hr", "lr"], track_meta=False),
        ]
    )


def _crop_px(task: Task, stage: Stage) -> int:
    crop = getattr(task.training, stage).crop_px or task.slice_px
    unit = math.lcm(task.upscale, task.autoencoder.compression)
    if crop % unit:
        raise MedQDMError(
            f"training.{stage}.crop_px: must be a multiple of {unit}, got {crop}; "
            f"take {max(unit, crop // unit * unit)}"
        )
    return int(min(crop, task.slice_px))


class TrainingSlices(Dataset[dict[str, Any]]):
    """Sample ``i`` is a function of the seed, the stage and ``i`` alone; there is no end.

    Patients are drawn by ``training.patient_weights``, then one of their slices evenly, so a long
    scan does not outweigh the others.

    Args:
        task: settings.
        stage: whose crop size.
        patients: the training patients.
    """

    def __init__(self, task: Task, stage: Stage, patients: Sequence[Patient]) -> None:
        self.slice_px = task.slice_px
        self.patients = patients
        self.transforms = train_transforms(task, stage)
        weights = np.array([task.training.patient_weights.get(p.name, 1.0) for p in patients])
        self._shares = weights / weights.sum() if task.training.patient_weights else None
        self._seed = (task.training.seed, _STREAMS[stage])

    def __getitem__(self, index: int) -> dict[str, Any]:
        """A sample with ``hr``, ``lr``, ``patient``, ``slice`` and ``spacing_mm``."""
        random = np.random.default_rng((*self._seed, index))
        patient = self.patients[int(random.choice(len(self.patients), p=self._shares))]
        count = len(load_slices(patient, self.slice_px).hu)
        chosen = {"patient": patient, "slice": int(random.integers(count))}
        self.transforms.set_random_state(seed=int(random.integers(2**32)))
        sample: dict[str, Any] = self.transforms(chosen)
        return sample


class FixedSlices(Dataset[dict[str, Any]]):
    """Whole slices with the test degradation, the same at every look.

    Args:
        task: settings.
        slices: which.
        seed: of the degradations.
    """

    def __init__(self, task: Task, slices: Sequence[tuple[Patient, int]], seed: int = 0) -> None:
        self.slices = slices
        self.seed = seed
        self.transforms = evaluation_transforms(task)

    @property
    def degradation(self) -> DegradationParams:
        """What was drawn for the sample that was looked at last."""
        params: DegradationParams = next(
            t.params for t in self.transforms.transforms if isinstance(t, DegradeD)
        )
        return params

    def __len__(self) -> int:
        return len(self.slices)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """A sample with ``hr``, ``lr``, ``patient``, ``slice`` and ``spacing_mm``."""
        patient, number = self.slices[index]
        self.transforms.set_random_state(seed=sample_seed(patient.name, number, self.seed))
        sample: dict[str, Any] = self.transforms({"patient": patient, "slice": number})
        return sample
