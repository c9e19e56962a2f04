"""Lesions: low-contrast discs put into known slices, and how much of their contrast comes back.

A disc is added to the HR slice before it is degraded. Each method runs on the slice with and
without discs under the same degradation and noise; the difference holds what became of the discs
alone.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from medqdm import degrade
from medqdm.config import Task, override
from medqdm.data.samples import FixedSlices
from medqdm.data.slices import Patient, sample_seed, spread
from medqdm.errors import MedQDMError
from medqdm.evaluate.intervals import Interval, interval
from medqdm.evaluate.methods import Method, enhance_one
from studies.detectability.discs import (
    KINDS,
    Disc,
    Kind,
    add_discs,
    area_noise_hu,
    flat_places,
    place_discs,
    recovered_contrast,
)

Image = NDArray[np.float32]
Value = Literal["recovered", "visibility"]

BICUBIC = "bicubic"
BY_THE_DISCS = "changed by the discs"  # ends the names of such pictures
ERASED_SHARE = 0.5  # of bicubic's recovered contrast: below, a disc is erased
# Contrast over the noise of areas of the disc's size from which on a disc is shown: the lower end
# of Rose's criterion, 3 to 5 (Rose, J Opt Soc Am 1948)
SHOWN_AT = 3.0
LEAST_SHOWN = 3  # discs of a kind that bicubic must show for a verdict on it
NOISE_PLACES = 200  # of a slice and diameter, at the most
# Poisson noise is drawn anew when the slice changes and would not cancel; Gaussian noise does
CANCELLING_NOISE = ("test_degradation.gaussian_probability=1",)


@dataclass(frozen=True, eq=False)
class Case:
    """A slice with and without discs, both degraded alike.

    Args:
        patient: folder or file name of the patient.
        slice: number of the slice among the patient's, from 0.
        hr_hu: ``(y, x)`` truth with discs, in HU.
        lr_hu: its input.
        plain_lr_hu: the input without discs.
        discs: which.
        places: diameter in mm to ``(n, 2)`` flat places where noise is read.
    """

    patient: str
    slice: int
    hr_hu: Image
    lr_hu: Image
    plain_lr_hu: Image
    discs: list[Disc]
    places: dict[float, NDArray[np.intp]]


def open_cases(
    task: Task, patients: Sequence[Patient], *, limit: int | None, seed: int
) -> tuple[Iterator[Case], int]:
    """Slices with discs, and how many there will be; one without room has no discs.

    Args:
        task: sizes, window and ``test_degradation``, its noise made Gaussian.
        patients: whose.
        limit: slices to look at, at the most, spread over the patients; None: all.
        seed: of the degradations and of the discs.
    """
    task = override(task, CANCELLING_NOISE)
    slices = spread(patients, task.slice_px, limit)
    return _cases(task, slices, seed), len(slices)


def _cases(task: Task, slices: Sequence[tuple[Patient, int]], seed: int) -> Iterator[Case]:
    window, fixed = task.hu_window, FixedSlices(task, slices, seed)
    placed: Counter[Kind] = Counter()
    for k, (patient, number) in enumerate(slices):
        sample = fixed[k]
        hr_hu = window.denormalize(sample["hr"][0].numpy())
        spacing_mm = sample["spacing_mm"]
        random = np.random.default_rng(sample_seed(patient.name, number, seed))
        discs = place_discs(
            hr_hu,
            window,
            spacing_mm=spacing_mm,
            upscale=task.upscale,
            random=random,
            placed=placed,
        )
        places = {}
        for diameter in {disc.diameter_mm for disc in discs}:
            reach_px = diameter / 2 / spacing_mm + task.upscale
            flat = np.argwhere(flat_places(hr_hu, window, reach_px))
            places[diameter] = random.permutation(flat)[:NOISE_PLACES]
        with_discs = window.clip(add_discs(hr_hu, discs))
        hr = torch.from_numpy(window.normalize(with_discs))[None]
        lr = degrade.degrade(hr, fixed.degradation, task.upscale)
        yield Case(
            patient=patient.name,
            slice=number,
            hr_hu=with_discs,
            lr_hu=window.denormalize(lr[0].numpy()),
            plain_lr_hu=window.denormalize(sample["lr"][0].numpy()),
            discs=discs,
            places=places,
        )


@dataclass(frozen=True)
class Recovery:
    """What one method made of one disc.

    Args:
        patient: folder or file name of the patient.
        slice: number of the slice among the patient's, from 0.
        disc: number of the disc in the slice, from 0.
        method: whose output.
        contrast_hu: of the disc.
        diameter_mm: of the disc.
        recovered: share of its contrast; 1: all, 0: nothing, below 0: the other sign.
        noise_hu: of areas of its size in the same output, see ``area_noise_hu``.
        coverage: share of the disc's core that it covers, and so of its contrast in the truth.
    """

    patient: str
    slice: int
    disc: int
    method: str
    contrast_hu: float
    diameter_mm: float
    recovered: float
    noise_hu: float
    coverage: float

    @property
    def kind(self) -> Kind:
        """Contrast in HU and diameter in mm."""
        return self.contrast_hu, self.diameter_mm

    @property
    def place(self) -> tuple[str, int, int]:
        """Patient, slice and number of the disc."""
        return self.patient, self.slice, self.disc

    @property
    def visibility(self) -> float:
        """Contrast of the right sign over the noise of areas of its size."""
        contrast = self.recovered * self.coverage * abs(self.contrast_hu)
        return contrast / self.noise_hu if self.noise_hu else math.copysign(math.inf, contrast)


@dataclass(frozen=True, eq=False)
class Lesions:
    """What all methods made of all discs.

    Args:
        settings: versions, model and task, as JSON.
        default: name of the method at the threshold that the weights carry.
        recoveries: one for each disc and method.
        example: a slice with many discs: pictures in HU, and differences by its discs.
    """

    settings: dict[str, Any]
    default: str
    recoveries: list[Recovery] = field(default_factory=list)
    example: dict[str, Image] = field(default_factory=dict)

    @property
    def methods(self) -> list[str]:
        """Names, bicubic first."""
        return list(dict.fromkeys(r.method for r in self.recoveries))

    @cached_property
    def shown(self) -> set[tuple[str, int, int]]:
        """Places of the discs that bicubic shows."""
        return {
            r.place for r in self.recoveries if r.method == BICUBIC and r.visibility >= SHOWN_AT
        }

    def count(self, kind: Kind, *, only_shown: bool = False) -> int:
        """Discs of a kind.

        Args:
            kind: which.
            only_shown: those alone that bicubic shows.
        """
        return sum(
            r.method == BICUBIC and r.kind == kind and (r.place in self.shown or not only_shown)
            for r in self.recoveries
        )

    def judged(self) -> list[Kind]:
        """Kinds of which bicubic shows three discs or more."""
        return [k for k in KINDS if self.count(k, only_shown=True) >= LEAST_SHOWN]

    def mean(
        self, method: str, kind: Kind, *, value: Value = "recovered", only_shown: bool = False
    ) -> Interval | None:
        """Mean over a patient's discs, then over patients; None if no disc found room.

        Args:
            method: which.
            kind: which.
            value: of a disc.
            only_shown: over the discs alone that bicubic shows.
        """
        found: dict[str, list[float]] = {}
        for r in self.recoveries:
            counts = r.place in self.shown or not only_shown
            if r.method == method and r.kind == kind and counts:
                found.setdefault(r.patient, []).append(getattr(r, value))
        means = [sum(values) / len(values) for values in found.values()]
        return interval(means) if means else None

    def against_bicubic(self, method: str, kind: Kind) -> float | None:
        """Mean recovered contrast over bicubic's, of discs that it shows; None if not judged."""
        if kind not in self.judged():
            return None
        ours, theirs = (self.mean(name, kind, only_shown=True) for name in (method, BICUBIC))
        return None if ours is None or theirs is None else ours.mean / theirs.mean

    def erased(self, method: str) -> list[Kind]:
        """Kinds of which a method recovers less than half of what bicubic recovers."""
        ratios = {kind: self.against_bicubic(method, kind) for kind in self.judged()}
        return [
            kind for kind, ratio in ratios.items() if ratio is not None and ratio < ERASED_SHARE
        ]

    def erased_share(self, method: str) -> float | None:
        """Share of the single discs that bicubic shows of which less than half of it comes back."""
        theirs = {r.place: r.recovered for r in self.recoveries if r.method == BICUBIC}
        lost = [
            r.recovered < ERASED_SHARE * theirs[r.place]
            for r in self.recoveries
            if r.method == method and r.place in self.shown
        ]
        return sum(lost) / len(lost) if lost else None


def measure_lesions(
    methods: Sequence[Method], cases: Iterable[Case], *, settings: dict[str, Any], default: str
) -> Lesions:
    """Run methods on slices with and without discs.

    Args:
        methods: bicubic first.
        cases: see ``open_cases``.
        settings: see ``run.describe``.
        default: name of the method whose verdict counts.

    Raises:
        MedQDMError: no slice had room for a disc.
    """
    found = Lesions(settings, default)
    most = 0
    for case in cases:
        if not case.discs:
            continue
        upscale = case.hr_hu.shape[1] // case.lr_hu.shape[1]
        shape = (case.hr_hu.shape[0], case.hr_hu.shape[1])
        pictures = {"truth with discs": case.hr_hu}
        differences = {}
        for method in methods:
            shown, plain = (
                enhance_one(method, lr_hu, case.slice)[0]
                for lr_hu in (case.lr_hu, case.plain_lr_hu)
            )
            difference = shown - plain
            noise_hu = {
                disc.diameter_mm: area_noise_hu(
                    plain, case.places[disc.diameter_mm], disc.radius_px, upscale
                )
                for disc in case.discs
            }
            found.recoveries.extend(
                Recovery(
                    patient=case.patient,
                    slice=case.slice,
                    disc=k,
                    method=method.name,
                    contrast_hu=disc.contrast_hu,
                    diameter_mm=disc.diameter_mm,
                    recovered=recovered_contrast(difference, disc, upscale),
                    noise_hu=noise_hu[disc.diameter_mm],
                    coverage=disc.core_coverage(shape),
                )
                for k, disc in enumerate(case.discs)
            )
            if method.name in {BICUBIC, default}:
                pictures[method.name] = shown
                differences[f"{method.name}: {BY_THE_DISCS}"] = difference
        if len(case.discs) > most:
            most = len(case.discs)
            found.example.clear()
            found.example.update(pictures | differences)
    if not found.recoveries:
        raise MedQDMError(
            "--lesions: slices must have flat soft tissue for a disc, got none with room; "
            "give slices of the body"
        )
    return found
