"""Slices: a folder of volumes to patients, and their HR slices as int16 HU in memory."""

import logging
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medqdm import io
from medqdm.config import TrainingSection
from medqdm.errors import MedQDMError
from medqdm.io.formats import ITK_ENDINGS, NIFTI_ENDINGS, has_ending
from medqdm.volume import Volume

log = logging.getLogger(__name__)

AIR_HU = -1024
CROP_LIMIT = 1.25  # up to this factor a matrix is cropped: resampling by nearly 1 blurs the truth
_NOT_CT = ("_seg", "segmentation", "label", "oar_", "_mr_", "_mr.")  # HaN-Seg's, SegRap2023's
_LAST_AXIS = 2


@dataclass(frozen=True)
class Patient:
    """One patient's volumes, not yet read.

    Args:
        name: name of the folder, or of the file without its ending.
        volumes: path and SeriesInstanceUID (None for a file) of each, for ``io.read``.
    """

    name: str
    volumes: tuple[tuple[Path, str | None], ...]


@dataclass(frozen=True, eq=False)
class Slices:
    """HR slices of one patient.

    Args:
        hu: ``(n, px, px)`` int16 HU, the volumes one after the other.
        spacing_mm: ``(n, 2)`` distance of pixel centres in y and x.
    """

    hu: NDArray[np.int16]
    spacing_mm: NDArray[np.float64]


def find_patients(data: Path) -> list[Patient]:
    """The patients of a folder, by name.

    Every folder and every NIfTI, NRRD or MetaImage file directly below is one patient; in a
    patient's folder every CT series counts, or every volume file where there is no DICOM series.
    A folder that holds one patient's files itself, or a single file, is that one patient.
    Segmentations and MR, which HaN-Seg and SegRap2023 put beside the CT, are known by their names
    and left out with a warning.

    Args:
        data: the folder.

    Raises:
        MedQDMError: nothing there, or two patients of one name.
    """
    if not data.exists():
        raise MedQDMError(f"{data}: must be a folder of CT volumes, got nothing; check the path")
    entries = sorted(data.iterdir()) if data.is_dir() else [data]
    found = [_patient(e) for e in entries if not e.name.startswith(".") and _may_hold_patient(e)]
    patients = [patient for patient in found if patient.volumes]
    if not patients and data.is_dir():
        patients = [p for p in [_patient(data.resolve())] if p.volumes]
    if not patients:
        raise MedQDMError(
            f"{data}: must hold CT volumes, one folder or file for each patient, got none; "
            "give a folder with DICOM, NIfTI, NRRD or MetaImage"
        )
    names = [patient.name for patient in patients]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise MedQDMError(
            f"{data}: patients must have different names, got {', '.join(twice)} as folder and "
            "file or with two endings; rename one, or move them into one folder"
        )
    return patients


def _may_hold_patient(entry: Path) -> bool:
    return entry.is_dir() or has_ending(entry, (*NIFTI_ENDINGS, *ITK_ENDINGS))


def _patient(entry: Path) -> Patient:
    volumes = []
    for series in io.find_series(entry):
        is_file = series.series_instance_uid is None
        if is_file and any(mark in series.path.name.lower() for mark in _NOT_CT):
            log.warning("%s is no CT by its name; left out", series.path.name)
        elif series.problem is not None:
            log.warning("%s; left out", series.problem)
        else:
            volumes.append((series.path, series.series_instance_uid))
    name = entry.name if entry.is_dir() else entry.name.split(".")[0]
    return Patient(name, tuple(volumes))


def split_patients(
    patients: Sequence[Patient], training: TrainingSection
) -> tuple[list[Patient], list[Patient]]:
    """Training and validation patients; nobody is on both sides.

    Args:
        patients: at least two.
        training: ``validation_patients``, or else ``validation_share`` and ``seed``; and the names
            in ``patient_weights``.

    Raises:
        MedQDMError: one side would be empty, or a name is not there.
    """
    names = [patient.name for patient in patients]
    if len(names) < 2:
        raise MedQDMError(
            f"training data: must hold two patients or more, got {len(names)}; validation needs a "
            "patient that training never sees, so add one"
        )
    held_out = set(training.validation_patients)
    for setting, named, nothing in (
        ("validation_patients", held_out, "[]"),
        ("patient_weights", set(training.patient_weights), "{}"),
    ):
        if unknown := sorted(named - set(names)):
            raise MedQDMError(
                f"training.{setting}: must be folders of the data, got {', '.join(unknown)}; "
                f"there are {', '.join(names)}; name some of them, or none: "
                f"--set training.{setting}={nothing}"
            )
    if not held_out:
        order = np.random.default_rng(training.seed).permutation(sorted(names))
        share = round(training.validation_share * len(names))
        held_out = set(order[: min(max(share, 1), len(names) - 1)].tolist())
    if len(held_out) == len(names):
        raise MedQDMError(
            f"training.validation_patients: must leave a patient to train on, got all {len(names)};"
            " take one out"
        )
    train = [patient for patient in patients if patient.name not in held_out]
    return train, [patient for patient in patients if patient.name in held_out]


@cache
def load_slices(patient: Patient, slice_px: int) -> Slices:
    """Read a patient's volumes as HR slices, once: both stages and forked workers share them.

    Args:
        patient: whose.
        slice_px: side of a slice.

    Raises:
        MedQDMError: none of the volumes can be read; a single bad one is left out with a warning.
    """
    stacks, spacings = [], []
    for path, series in patient.volumes:
        try:
            volume = _read(path, series)
        except MedQDMError as error:
            if len(patient.volumes) == 1:
                raise
            log.warning("%s; left out", error)
            continue
        hu, spacing = to_hr_slices(volume, slice_px)
        stacks.append(hu)
        spacings.append(np.tile(spacing, (len(hu), 1)))
    if not stacks:
        raise MedQDMError(
            f"{patient.name}: must hold a CT volume that can be read, got none; "
            "the warnings above say why, take the folder out"
        )
    return Slices(np.concatenate(stacks), np.concatenate(spacings))


def _read(path: Path, series: str | None) -> Volume:
    try:
        return io.read(path, series=series)
    except MedQDMError:
        if series is not None:
            raise
        return io.read(path, slice_axis=_LAST_AXIS)  # equal spacings do not tell the slice axis


def to_hr_slices(volume: Volume, slice_px: int) -> tuple[NDArray[np.int16], NDArray[np.float64]]:
    """The slices of a volume as squares of ``slice_px``, never resampled up.

    A matrix whose longer side is at least 1.25 times too large is reduced to fit by exact area
    averages, which keep its outer edges. What then is still larger is cropped around the centre,
    and what is smaller is padded with air.

    Args:
        volume: any in-plane matrix.
        slice_px: side of a slice.

    Returns:
        ``(z, slice_px, slice_px)`` rounded HU, and the ``(y, x)`` spacing in mm.
    """
    _, height, width = volume.shape
    factor = max(height, width) / slice_px
    size = (height, width)
    if factor >= CROP_LIMIT:
        size = (max(1, round(height / factor)), max(1, round(width / factor)))
    rows, columns = area_weights(height, size[0]), area_weights(width, size[1])
    hr = np.full((len(volume.hu), slice_px, slice_px), AIR_HU, dtype=np.int16)
    (from_y, to_y), (from_x, to_x) = _centred(size[0], slice_px), _centred(size[1], slice_px)
    limits = np.iinfo(np.int16)
    for target, image in zip(hr, volume.hu, strict=True):
        reduced = image if size == image.shape else rows @ image @ columns.T
        target[to_y, to_x] = np.rint(reduced[from_y, from_x]).clip(limits.min, limits.max)
    return hr, np.array(volume.spacing_mm) * (height, width) / size


def area_weights(num_in: int, num_out: int) -> NDArray[np.float32]:
    """``(num_out, num_in)`` share of each input pixel in each output pixel; rows sum to 1."""
    edges = np.arange(num_out + 1) * (num_in / num_out)
    left = np.arange(num_in)
    overlap = np.minimum(edges[1:, None], left + 1) - np.maximum(edges[:-1, None], left)
    weights: NDArray[np.float32] = (overlap.clip(0) * (num_out / num_in)).astype(np.float32)
    return weights


def _centred(size: int, slice_px: int) -> tuple[slice, slice]:
    """Where to read along an axis and where to write, so that the centres meet."""
    surplus = (size - slice_px) // 2
    if surplus >= 0:
        return slice(surplus, surplus + slice_px), slice(None)
    start = (slice_px - size) // 2
    return slice(None), slice(start, start + size)


def spread(
    patients: Sequence[Patient], slice_px: int, limit: int | None
) -> list[tuple[Patient, int]]:
    """Slices spread evenly over patients, and over each patient from first to last.

    Args:
        patients: whose slices.
        slice_px: side of a slice.
        limit: how many slices at the most; None: all.
    """
    counts = [len(load_slices(patient, slice_px).hu) for patient in patients]
    shares = [0] * len(counts)
    for _ in range(sum(counts) if limit is None else min(limit, sum(counts))):
        emptiest = min(
            (k for k in range(len(counts)) if shares[k] < counts[k]), key=lambda k: (shares[k], k)
        )
        shares[emptiest] += 1
    return [
        (patient, int((k + 0.5) * count / share))
        for patient, count, share in zip(patients, counts, shares, strict=True)
        for k in range(share)
    ]


def sample_seed(patient: str, index: int, seed: int = 0) -> int:
    """The seed of one slice's test degradation: from its patient's name and its number alone."""
    state = np.random.SeedSequence([seed, zlib.crc32(patient.encode()), index])
    return int(state.generate_state(1)[0])
