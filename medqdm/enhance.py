"""Enhance: the pipeline from a series to its super-resolved series, in one call."""

import json
import math
import platform
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from medqdm import io, metrics, picture
from medqdm.config import Precision, load_task
from medqdm.enhancer import EnhancedSlice, Enhancer
from medqdm.errors import MedQDMError
from medqdm.io.whole import check_folder, whole_folder
from medqdm.streaming import map_behind
from medqdm.version import __version__
from medqdm.volume import SliceStack, Volume

WEIGHTS_FOLDER = Path(__file__).parent / "weights"


def bundled_weights(name: str) -> Path:
    """Weights that come with medqdm, for a task by name.

    Raises:
        MedQDMError: none are bundled for it.
    """
    path = WEIGHTS_FOLDER / f"{name}.safetensors"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in WEIGHTS_FOLDER.glob("*.safetensors")))
        raise MedQDMError(
            f"no weights for task '{name}': bundled are {known or 'none'}; give --weights FILE"
        )
    return path


@dataclass
class Summary:
    """What a run did, in numbers; grows with each slice.

    ``mean_shift_hu`` and ``lr_consistency_hu`` compare the output, reduced by area to the input's
    grid, with the input. ``redone`` counts the slices that were not finite in bf16.
    """

    num_slices: int = 0
    seconds: float = 0.0
    refined_cells: int = 0
    cells: int = 0
    shift_sum_hu: float = 0.0
    square_sum_hu: float = 0.0
    voxels: int = 0
    clipped: int = 0
    redone: int = 0
    warnings: list[str] = field(default_factory=list)

    def add(self, done: EnhancedSlice, lr_hu: NDArray[np.float32]) -> None:
        """Count one more slice."""
        factor = done.hu.shape[1] // lr_hu.shape[1]
        difference = metrics.reduce_by_area(done.hu, factor).astype(np.float64) - lr_hu
        self.num_slices += 1
        self.seconds += done.seconds
        self.refined_cells += int(done.refined.sum())
        self.cells += done.refined.size
        self.shift_sum_hu += float(difference.sum())
        self.square_sum_hu += float((difference**2).sum())
        self.voxels += difference.size

    def numbers(self) -> dict[str, float | int]:
        """The summary's figures under the names of run.json."""
        return {
            "slices": self.num_slices,
            "seconds_per_slice": round(self.seconds / max(1, self.num_slices), 3),
            "share_refined": round(self.refined_cells / max(1, self.cells), 4),
            "mean_shift_hu": round(self.shift_sum_hu / max(1, self.voxels), 3),
            "lr_consistency_hu": round((self.square_sum_hu / max(1, self.voxels)) ** 0.5, 3),
            "clipped_voxels": self.clipped,
        }

    def count_redone(self, slices: int) -> None:
        """Note how many slices bf16 failed on, and warn if there are any."""
        self.redone = slices
        if slices:
            self.warnings.append(f"{slices} slice(s) overflowed in bf16 and were done in fp32")


class RefinedCells:
    """The refined cells of all slices, a bit each."""

    def __init__(self) -> None:
        self._bits: list[NDArray[np.uint8]] = []
        self._shape = (0, 0)

    def add(self, refined: NDArray[np.bool_]) -> None:
        """Take the cells ``(rows, columns)`` of the next slice."""
        self._shape = refined.shape[0], refined.shape[1]
        self._bits.append(np.packbits(refined))

    def save(self, path: Path) -> None:
        """Write ``refined``, ``(z, rows, columns)`` bool, as a compressed npz file."""
        header = {"descr": "|b1", "fortran_order": False, "shape": (len(self._bits), *self._shape)}
        with (
            zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
            archive.open("refined.npy", "w", force_zip64=True) as file,
        ):
            np.lib.format.write_array_header_1_0(file, header)
            for bits in self._bits:
                file.write(np.unpackbits(bits, count=math.prod(self._shape)).tobytes())


Track = Callable[[Iterable[EnhancedSlice], int], Iterable[EnhancedSlice]]
FORMATS = {"dicom": "", "nifti": ".nii.gz", "nrrd": ".nrrd", "mha": ".mha"}


def enhance_volume(
    enhancer: Enhancer,
    volume: Volume,
    out: Path,
    *,
    file_format: str = "dicom",
    overwrite: bool = False,
    track: Track = lambda slices, _total: slices,
) -> Summary:
    """Enhance a volume and write it into a folder that appears whole or not at all.

    The folder holds the DICOM series (or ``enhanced.nii.gz``, ``.nrrd``, ``.mha``), ``run.json``
    (what was done, with what), ``comparison.png`` (the middle slice before and after) and
    ``refined.npz`` (``refined``: ``(z, rows, columns)`` bool cells of 2 x 2 input pixels).

    Args:
        enhancer: the loaded model.
        volume: the input; its files are never touched.
        out: the folder.
        file_format: one of ``FORMATS``.
        overwrite: replace a folder that has files in it, at the very end.
        track: wraps the slices as they come, with their number, to show progress.

    Raises:
        MedQDMError: the output folder is in use, or the format cannot hold this geometry.
    """
    if file_format not in FORMATS:
        raise MedQDMError(f"--format: must be one of {', '.join(FORMATS)}, got {file_format!r}")
    enhancer.prepare(volume)
    summary = Summary(warnings=enhancer.warnings(volume))
    middle = len(volume.hu) // 2
    kept: dict[str, EnhancedSlice] = {}
    refined = RefinedCells()

    def count(done: EnhancedSlice) -> NDArray[np.float32]:
        summary.add(done, volume.hu[done.z])
        refined.add(done.refined)
        if done.z == middle:
            kept["middle"] = done
        return done.hu

    def pixels() -> Iterator[NDArray[np.float32]]:
        yield from map_behind(count, track(enhancer.slices(volume), len(volume.hu)), 1)

    def add_files(folder: Path) -> None:
        summary.count_redone(len(enhancer.redone))
        refined.save(folder / "refined.npz")
        done = kept["middle"]
        figure = picture.compare(
            volume.hu[middle],
            done.hu,
            done.refined,
            enhancer.task.hu_window,
            title=f"slice {middle + 1} of {len(volume.hu)}, {enhancer.task.name}, "
            "not for diagnostic use",
        )
        picture.save(figure, folder / "comparison.png")
        run = run_record(enhancer, volume, summary, file_format)
        (folder / "run.json").write_text(json.dumps(run, indent=2) + "\n", encoding="utf-8")

    if file_format == "dicom":

        def finish(folder: Path, report: io.WriteReport) -> None:
            summary.clipped = report.num_clipped
            add_files(folder)

        io.write_series(
            volume,
            pixels(),
            out,
            upscale=enhancer.task.upscale,
            description=describe(enhancer),
            software_version=__version__,
            weights_id=enhancer.sha256[:12],
            uid_entropy=[enhancer.sha256, __version__, enhancer.task.model_dump_json(),
                         str(enhancer.seed), enhancer.device.type, enhancer.precision],
            overwrite=overwrite,
            extra=finish,
        )  # fmt: skip
        return summary
    with (
        whole_folder(out, overwrite=overwrite) as folder,
        _on_disk(volume, pixels(), enhancer.task.upscale, folder) as enlarged,
    ):
        io.write(volume, enlarged, folder / f"enhanced{FORMATS[file_format]}")
        add_files(folder)
    return summary


@contextmanager
def _on_disk(
    volume: Volume, slices: Iterable[NDArray[np.float32]], upscale: int, folder: Path
) -> Iterator[Volume]:
    """The enhanced volume, rounded to int16 and in a temporary file, not in memory."""
    z, height, width = volume.shape
    shape = z, height * upscale, width * upscale
    slice_bytes = 2 * shape[1] * shape[2]
    limits = np.iinfo(np.int16)
    with tempfile.TemporaryFile(dir=folder) as file:
        for hu in slices:
            file.write(np.rint(hu).clip(limits.min, limits.max).astype(np.int16).tobytes())

        def read(z: int) -> NDArray[np.float32]:
            file.seek(z * slice_bytes)
            words = np.frombuffer(file.read(slice_bytes), dtype=np.int16)
            return words.reshape(shape[1:]).astype(np.float32)

        yield volume.with_pixels(SliceStack(shape, np.float32, read))


def load_enhancer(
    task: str | None,
    weights: str | Path | None,
    *,
    device: str,
    seed: int,
    settings: Sequence[str],
    precision: Precision = "auto",
    batch_size: int | None = None,
) -> Enhancer:
    """The model that a user means by ``--task`` and ``--weights``.

    Args:
        task: name of a task; None: sr4, or whatever the weights are for.
        weights: a weights file; None: the task's bundled one.
        device: see ``choose_device``.
        seed: of the noise.
        settings: ``key=value`` changes to the task that the weights carry.
        precision: see ``Enhancer``.
        batch_size: see ``Enhancer``.

    Raises:
        MedQDMError: no such weights, or weights of another factor than the task's.
    """
    path = Path(weights) if weights else bundled_weights(task or "sr4")
    enhancer = Enhancer(
        path,
        device=device,
        precision=precision,
        seed=seed,
        overrides=settings,
        batch_size=batch_size,
    )
    if weights and task and load_task(task).upscale != enhancer.task.upscale:
        raise MedQDMError(
            f"{path}: must be weights for task {task} (x{load_task(task).upscale}), got weights "
            f"of {enhancer.task.name} (x{enhancer.task.upscale}); leave --task out or give others"
        )
    return enhancer


def enhance_series(  # noqa: PLR0913  (all by keyword but two)
    series: str | Path,
    out: str | Path,
    *,
    task: str | None = None,
    weights: str | Path | None = None,
    device: str = "auto",
    seed: int = 0,
    file_format: str = "dicom",
    series_uid: str | None = None,
    slice_axis: int | None = None,
    settings: Sequence[str] = (),
    precision: Precision = "auto",
    batch_size: int | None = None,
    overwrite: bool = False,
    announce: Callable[[Enhancer, Volume], None] = lambda _enhancer, _volume: None,
    track: Track = lambda slices, _total: slices,
) -> Summary:
    """Read a series, enhance it, write it: what ``medqdm enhance`` does, in one call.

    Args:
        series: DICOM folder, or a NIfTI, NRRD or MetaImage file.
        out: folder to write, see ``enhance_volume``.
        task: whose bundled weights to take; sr4 if neither task nor weights are given.
        weights: a weights file instead; with a task, it must be of the task's factor.
        device: see ``choose_device``.
        seed: of the noise.
        file_format: one of ``FORMATS``.
        series_uid: SeriesInstanceUID, where the folder holds several series.
        slice_axis: array axis across slices, where a NIfTI, NRRD or MetaImage file does not tell.
        settings: ``key=value`` changes to the task that the weights carry.
        precision: ``auto``, ``fp32`` or ``bf16``; see ``Enhancer``.
        batch_size: tiles that the network gets at once; None: found, see ``Enhancer``.
        overwrite: replace an output folder that has files in it.
        announce: called once, with the loaded model and the volume, before the work begins.
        track: wraps the slices as they come, with their number, to show progress.

    Raises:
        MedQDMError: anything about input, weights, settings or output that the user can put right.
    """
    check_output(Path(series), Path(out), overwrite=overwrite)
    volume = io.read(series, series=series_uid, slice_axis=slice_axis)
    enhancer = load_enhancer(
        task,
        weights,
        device=device,
        seed=seed,
        settings=settings,
        precision=precision,
        batch_size=batch_size,
    )
    announce(enhancer, volume)
    return enhance_volume(
        enhancer, volume, Path(out), file_format=file_format, overwrite=overwrite, track=track
    )


def check_output(series: Path, out: Path, *, overwrite: bool) -> None:
    """Refuse, before any work is done, an output folder that must not be written.

    Raises:
        MedQDMError: it is the input, holds it or lies in it; or it is in use.
    """
    source, target = series.resolve(), out.resolve()
    if source.is_dir() and (source == target or source in target.parents):
        raise MedQDMError(
            f"{out}: the output must not lie in the input folder, got one that does; "
            "choose another folder"
        )
    if target in source.parents:
        raise MedQDMError(
            f"{out}: the output must not be a folder that holds the input, got one that does; "
            "choose another folder"
        )
    check_folder(out, overwrite=overwrite, marker="run.json")


def describe(enhancer: Enhancer) -> str:
    """The DICOM DerivationDescription: method, version, weights and settings; no paths."""
    task = enhancer.task
    steps = task.diffusion.sampling_steps or task.diffusion.num_steps
    return (
        f"In-plane x{task.upscale} super-resolution by a quadtree diffusion model; detail is "
        f"synthetic. medqdm {__version__}, task {task.name}, weights sha256:{enhancer.sha256}, "
        f"seed {enhancer.seed}, steps {steps}, gamma {task.diffusion.gamma:g}, "
        f"s {task.quadtree.threshold:g} ({task.threshold_hu:g} HU), "
        f"{enhancer.device.type} {enhancer.precision}"
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
            "bf16_shift_hu": _rounded(enhancer.bf16_shift_hu),
            "slices_redone_in_fp32": summary.redone,
        },
        "batch_size": enhancer.batch_size,
        "seed": enhancer.seed,
        "weights_sha256": enhancer.sha256,
        "task": enhancer.task.model_dump(mode="json", exclude={"training"}),
        "threshold_hu": enhancer.task.threshold_hu,
        "input": {
            "kind": volume.source.kind,
            "shape_zyx": list(volume.shape),
            "spacing_yx_mm": list(volume.spacing_mm),
        },
        "output": {"format": file_format, "upscale": enhancer.task.upscale},
        "summary": summary.numbers(),
        "warnings": summary.warnings,
    }


def _rounded(shift_hu: float | None) -> float | None:
    """For JSON, which has no NaN."""
    return None if shift_hu is None or math.isnan(shift_hu) else round(shift_hu, 4)
