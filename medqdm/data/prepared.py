"""Prepared: fixed pairs of HR and LR slices in HU, made on the fly or kept as a Med-SR set."""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypedDict
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from medqdm.config import Task
from medqdm.data.samples import FixedSlices
from medqdm.data.slices import Patient, find_patients, load_slices, sample_seed, spread
from medqdm.errors import MedQDMError
from medqdm.io.whole import whole_folder
from medqdm.version import __version__

MANIFEST = "manifest.json"


class Pair(TypedDict):
    """One slice as truth and as input, clipped to the task's window."""

    hr_hu: NDArray[np.float32]
    """``(h, w)``."""
    lr_hu: NDArray[np.float32]
    """``(h / upscale, w / upscale)``."""
    patient: str
    slice: int
    spacing_mm: float
    """Of the HR pixels, mean of y and x."""


class Manifest(TypedDict):
    """What a prepared set says about itself."""

    medqdm: str
    """Version that made it."""
    task: str
    upscale: int
    slice_px: int
    window: dict[str, float]
    degradation: dict[str, Any]
    seed: int
    slices: list[dict[str, Any]]
    """Per slice: file, patient, slice, seed, spacing_mm ``[y, x]`` of the HR pixels, params."""


def iterate_pairs(
    task: Task, data: Path, *, limit: int | None = None, seed: int = 0
) -> Iterator[Pair]:
    """The pairs that ``prepare`` would write for the same arguments, bit by bit.

    Args:
        task: sizes, window and ``test_degradation``.
        data: folder of volumes, see ``find_patients``.
        limit: slices at the most, spread evenly over the patients; None: all.
        seed: of the degradations.

    Raises:
        MedQDMError: no volumes there, or none of a patient's can be read.
    """
    for pair, _, _ in _pairs(task, find_patients(data), limit, seed):
        yield pair


def _pairs(
    task: Task, patients: list[Patient], limit: int | None, seed: int
) -> Iterator[tuple[Pair, Patient, dict[str, Any]]]:
    slices = spread(patients, task.slice_px, limit)
    fixed = FixedSlices(task, slices, seed)
    for index, (patient, number) in enumerate(slices):
        sample = fixed[index]
        hr_hu = load_slices(patient, task.slice_px).hu[number].astype(np.float32)
        pair = Pair(
            hr_hu=task.hu_window.clip(hr_hu),
            lr_hu=task.hu_window.denormalize(sample["lr"][0].numpy()),
            patient=patient.name,
            slice=number,
            spacing_mm=sample["spacing_mm"],
        )
        yield pair, patient, asdict(fixed.degradation)


def prepare(
    task: Task,
    data: Path,
    out: Path,
    *,
    limit: int | None = None,
    seed: int = 0,
    overwrite: bool = False,
    progress: Callable[[int], None] | None = None,
) -> int:
    """Write a fixed Med-SR set, whole or not at all: ``OUT/PATIENT/0000.npz`` and a manifest.

    Args:
        task: sizes, window and ``test_degradation``.
        data: folder of volumes, see ``find_patients``.
        out: folder to appear.
        limit: slices at the most, spread evenly over the patients; None: all.
        seed: of the degradations.
        overwrite: whether a folder with files in it may be replaced.
        progress: called with the number of slices written so far.

    Returns:
        The number of pairs.

    Raises:
        MedQDMError: no volumes there, or ``out`` may not be replaced.
    """
    manifest = Manifest(
        medqdm=__version__,
        task=task.name,
        upscale=task.upscale,
        slice_px=task.slice_px,
        window=task.window.model_dump(),
        degradation=task.test_degradation.model_dump(mode="json"),
        seed=seed,
        slices=[],
    )
    with whole_folder(out, overwrite=overwrite, marker=MANIFEST) as folder:
        for pair, patient, params in _pairs(task, find_patients(data), limit, seed):
            name, number = pair["patient"], pair["slice"]
            file = f"{name}/{number:04d}.npz"
            (folder / name).mkdir(exist_ok=True)
            np.savez_compressed(folder / file, hr_hu=pair["hr_hu"], lr_hu=pair["lr_hu"])
            spacing = load_slices(patient, task.slice_px).spacing_mm[number]
            manifest["slices"].append(
                {
                    "file": file,
                    "patient": name,
                    "slice": number,
                    "seed": sample_seed(name, number, seed),
                    "spacing_mm": spacing.tolist(),
                    "params": params,
                }
            )
            if progress is not None:
                progress(len(manifest["slices"]))
        text = json.dumps(manifest, indent=1)
        (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")
    return len(manifest["slices"])


def is_prepared(path: Path) -> bool:
    """Whether ``prepare`` wrote the folder."""
    return (path / MANIFEST).is_file()


def read_manifest(path: Path, task: Task) -> Manifest:
    """What a prepared set says about itself.

    Args:
        path: a folder that ``prepare`` wrote.
        task: the set must have its ``upscale`` and window.

    Raises:
        MedQDMError: no such folder, a damaged manifest, or a set for another kind of task.
    """
    try:
        manifest: Manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        found = (manifest["upscale"], manifest["window"], len(manifest["slices"]))
        _ = manifest["degradation"], manifest["seed"]  # for reports, at the end of the work
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise MedQDMError(
            f"{path}: must be a folder written by medqdm prepare, got {type(error).__name__} on "
            f"reading its {MANIFEST}; prepare it again"
        ) from None
    wanted = (task.upscale, task.window.model_dump())
    if found[:2] != wanted:
        raise MedQDMError(
            f"{path}: must be prepared for upscale {wanted[0]} and window {wanted[1]}, got "
            f"{found[0]} and {found[1]}; prepare it with task {task.name}"
        )
    return manifest


def load_prepared(path: Path, task: Task) -> Iterator[Pair]:
    """The pairs of a prepared set, in the order of its manifest.

    Args:
        path: a folder that ``prepare`` wrote.
        task: the set must have its ``upscale`` and window.

    Raises:
        MedQDMError: no such folder, damaged, or a set for another kind of task.
    """
    for entry in read_manifest(path, task)["slices"]:
        try:
            with (path / entry["file"]).open("rb") as stream:
                arrays = np.load(stream, allow_pickle=False)
                hr_hu, lr_hu = arrays["hr_hu"], arrays["lr_hu"]
        except (OSError, ValueError, IndexError, KeyError, EOFError, BadZipFile) as error:
            raise MedQDMError(
                f"{path / entry['file']}: must hold hr_hu and lr_hu, got {type(error).__name__} on "
                "reading it; the set is damaged, prepare it again"
            ) from None
        yield Pair(
            hr_hu=hr_hu,
            lr_hu=lr_hu,
            patient=entry["patient"],
            slice=entry["slice"],
            spacing_mm=float(np.mean(entry["spacing_mm"])),
        )
