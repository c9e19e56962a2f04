"""Enhance: the pipeline from a series to its super-resolved series, in one call."""

import hashlib
import json
import math
import platform
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from medqdm import io, metrics, picture
from medqdm.config import Precision, load_task
from medqdm.enhancer import Enhancer
from medqdm.errors import MedQDMError
from medqdm.io.whole import check_folder
from medqdm.jobs import EnhancedSlice
from medqdm.sampling import settings_of
from medqdm.streaming import map_behind
from medqdm.version import __version__
from medqdm.volume import Volume

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
    grid, with the input. ``redone`` counts the slices that were not finite in bf16. ``finished``
    holds the figures of an earlier run where there was nothing left to do.
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
    finished: dict[str, float | int] | None = None

    def add(self, done: EnhancedSlice, lr_hu: NDArray[np.float32]) -> None:
        """Count one more slice."""
        difference = metrics.lr_difference_hu(done.hu, lr_hu)
        self.num_slices += 1
        self.seconds += done.seconds
        self.refined_cells += int(done.refined.sum())
        self.cells += done.refined.size
        self.shift_sum_hu += float(difference.sum())
        self.square_sum_hu += float((difference**2).sum())
        self.voxels += difference.size

    def numbers(self) -> dict[str, float | int]:
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
        }

    def count_redone(self, slices: int) -> None:
        """Note how many slices bf16 failed on, and warn if there are any."""
        self.redone = slices
        if slices:
            self.warnings.append(f"{slices} slice(s) overflowed in bf16 and were done in fp32")


class SliceArchive:
    """An npz file of one array ``(z, rows, columns)``, slice by slice: memory stays flat.

    Args:
        name: of the array.
        num_slices: z.
    """

    def __init__(self, name: str, num_slices: int) -> None:
        self._num_slices = num_slices
        self._file = tempfile.TemporaryFile()  # noqa: SIM115  (``close`` closes it)
        self._archive = zipfile.ZipFile(self._file, "w", zipfile.ZIP_DEFLATED)
        entry = zipfile.ZipInfo(f"{name}.npy")  # without the time: the same array, the same file
        entry.compress_type = zipfile.ZIP_DEFLATED
        self._array = self._archive.open(entry, "w", force_zip64=True)
        self._is_empty = True

    def add(self, image: NDArray[Any]) -> None:
        """Take the next slice ``(rows, columns)``."""
        if self._is_empty:
            header = np.lib.format.header_data_from_array_1_0(image)
            header["shape"] = (self._num_slices, *image.shape)
            np.lib.format.write_array_header_1_0(self._array, header)
            self._is_empty = False
        self._array.write(np.ascontiguousarray(image).tobytes())

    def save(self, path: Path) -> None:
        """Write the file, once all slices are there."""
        self._array.close()
        self._archive.close()
        self._file.seek(0)
        with path.open("wb") as out:
            shutil.copyfileobj(self._file, out)

    def close(self) -> None:
        """Give the draft up."""
        self._array.close()
        self._archive.close()
        self._file.close()


Track = Callable[[Iterable[EnhancedSlice], int], Iterable[EnhancedSlice]]


def enhance_volume(  # noqa: PLR0913  (all by keyword but three)
    enhancer: Enhancer,
    volume: Volume,
    out: Path,
    *,
    file_format: str = "dicom",
    transfer_syntax: str = "explicit",
    dates: str = "now",
    resume: bool = False,
    overwrite: bool = False,
    track: Track = lambda slices, _total: slices,
) -> Summary:
    """Enhance a volume and write it into a folder that appears whole or not at all.

    The folder holds the DICOM series (or ``enhanced.nii.gz``, ``.nrrd``, ``.mha``), ``run.json``
    (what was done, with what), ``comparison.png`` (the middle slice before and after) and
    ``refined.npz`` (``refined``: ``(z, rows, columns)`` bool cells of 2 x 2 input pixels); with
    several draws ``uncertainty.npz`` too (``deviation_hu``: their standard deviation per output
    pixel, ``(z, y, x)`` float16 in HU).

    Args:
        enhancer: the loaded model.
        volume: the input; its files are never touched.
        out: the folder.
        file_format: one of ``io.FORMATS``.
        transfer_syntax: of a DICOM series, see ``io.SeriesSettings``.
        dates: of a DICOM series, see ``io.SeriesSettings``.
        resume: go on where an interrupted run with the same input, weights and settings stopped,
            do nothing if it ended well, and keep what is done if this one is interrupted.
        overwrite: replace a folder that has files in it, at the very end.
        track: wraps the slices as they come, with their number, to show progress.

    Raises:
        MedQDMError: the output folder is in use, or the format cannot hold this geometry.
    """
    enhancer.prepare(volume)
    settings = _series_settings(enhancer, transfer_syntax, dates)
    identity = _identity(enhancer, volume, settings, file_format)
    if resume and (run := _finished(out, identity)):
        return Summary(num_slices=len(volume.hu), finished=run["summary"], warnings=run["warnings"])
    with io.open_output(
        volume,
        out,
        settings,
        identity=identity,
        facts={"batch_size": enhancer.batch_size},
        file_format=file_format,
        resume=resume,
        overwrite=overwrite,
    ) as output:
        summary = _enhance_into(output, enhancer, volume, track)
        output.finish()
        summary.clipped = output.num_clipped
        _add_companions(output, enhancer, volume)
        run = run_record(enhancer, volume, summary, file_format)
        run["output"] |= {"transfer_syntax": transfer_syntax, "identity": identity}
        text = json.dumps(run, indent=2) + "\n"
        (output.folder / io.RUN_FILE).write_text(text, encoding="utf-8")
    return summary


def _enhance_into(output: io.Output, enhancer: Enhancer, volume: Volume, track: Track) -> Summary:
    """Write the slices that are not there yet; the figures of all."""
    summary = Summary(warnings=enhancer.warnings(volume))
    start = len(output.notes)
    if start:
        summary = Summary(**output.notes[-1]["summary"])
        enhancer.take_batch_size(output.facts["batch_size"])

    def measure(done: EnhancedSlice) -> tuple[EnhancedSlice, dict[str, Any]]:
        summary.add(done, volume.hu[done.z])
        note = {"summary": asdict(summary), "redone": done.z in enhancer.redone}
        return done, note

    def take(measured: tuple[EnhancedSlice, dict[str, Any]]) -> None:
        done, note = measured
        arrays = {"refined": done.refined}
        if done.deviation_hu is not None:
            arrays["deviation_hu"] = done.deviation_hu.astype(np.float16)
        output.take(done.z, done.hu, arrays, note)

    slices = track(enhancer.slices(volume, start=start), len(volume.hu) - start)
    for _ in map_behind(take, map_behind(measure, slices, 1), io.SLICES_BEHIND):
        pass
    summary.count_redone(sum(note["redone"] for note in output.notes))
    return summary


def _add_companions(output: io.Output, enhancer: Enhancer, volume: Volume) -> None:
    """What lies beside the enhanced pixels: the cells, the deviation and a picture."""
    archives = {"refined": "refined"}
    if enhancer.draws > 1:
        archives["deviation_hu"] = "uncertainty"
    for array, name in archives.items():
        with closing(SliceArchive(array, len(volume.hu))) as archive:
            for image in output.arrays(array):
                archive.add(image)
            archive.save(output.folder / f"{name}.npz")
    middle = len(volume.hu) // 2
    figure = picture.compare(
        volume.hu[middle],
        output.hu(middle),
        output.array("refined", middle),
        enhancer.task.hu_window,
        title=f"slice {middle + 1} of {len(volume.hu)}, {enhancer.task.name}, "
        "not for diagnostic use",
    )
    picture.save(figure, output.folder / "comparison.png")


def _series_settings(enhancer: Enhancer, transfer_syntax: str, dates: str) -> io.SeriesSettings:
    return io.SeriesSettings(
        upscale=enhancer.task.upscale,
        description=describe(enhancer),
        software_version=__version__,
        weights_id=enhancer.sha256[:12],
        uid_entropy=(enhancer.sha256, __version__, enhancer.task.model_dump_json(),
                     str(enhancer.seed), enhancer.device.type, enhancer.precision,
                     f"mean of {enhancer.draws}" if enhancer.mean else "one draw"),
        transfer_syntax=transfer_syntax,
        dates=dates,
    )  # fmt: skip


def _identity(
    enhancer: Enhancer, volume: Volume, settings: io.SeriesSettings, file_format: str
) -> str:
    """A digest of all that the files of an output depend on."""
    parts = [io.identify(volume, settings), settings.transfer_syntax, settings.dates, file_format,
             str(enhancer.draws)]  # fmt: skip
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _finished(out: Path, identity: str) -> dict[str, Any] | None:
    """The run.json of the very same run, if it ended and its slices are still there."""
    try:
        run: dict[str, Any] = json.loads((out / io.RUN_FILE).read_text(encoding="utf-8"))
        output, num_slices = run["output"], run["input"]["shape_zyx"][0]
        if output["identity"] != identity:
            return None
        is_dicom = output["format"] == "dicom"
        expected = num_slices if is_dicom else 1
        found = len(list(out.glob("IM*.dcm" if is_dicom else "enhanced.*")))
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return None
    return run if found == expected else None


def load_enhancer(  # noqa: PLR0913  (all by keyword but two)
    task: str | None,
    weights: str | Path | None,
    *,
    device: str,
    seed: int,
    settings: Sequence[str],
    precision: Precision = "auto",
    batch_size: int | None = None,
    sampler: str | None = None,
    steps: int | None = None,
    consistency: bool = False,
    uncertainty: int | None = None,
    mean: int | None = None,
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
        sampler: which regions run at which steps, see ``SamplerSection``; all steps unless told.
        steps: sampling steps; None: the task's, or all with a sampler.
        consistency: draw the output, reduced, nearer to the input.
        uncertainty: draws of each slice, two or more, whose deviation is written beside it.
        mean: draws of each slice, two or more, whose mean is written instead of the first draw.

    Raises:
        MedQDMError: no such weights, or weights of another factor than the task's.
    """
    path = Path(weights) if weights else bundled_weights(task or "sr4")
    enhancer = Enhancer(
        path,
        device=device,
        precision=precision,
        seed=seed,
        overrides=[*settings_of(sampler, steps=steps, consistency=consistency), *settings],
        batch_size=batch_size,
        draws=_checked_draws(uncertainty, mean),
        mean=mean is not None,
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
    skip_bad: bool = False,
    settings: Sequence[str] = (),
    precision: Precision = "auto",
    batch_size: int | None = None,
    sampler: str | None = None,
    steps: int | None = None,
    consistency: bool = False,
    uncertainty: int | None = None,
    mean: int | None = None,
    transfer_syntax: str = "explicit",
    dates: str = "now",
    resume: bool = False,
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
        file_format: one of ``io.FORMATS``.
        series_uid: SeriesInstanceUID, where the folder holds several series.
        slice_axis: array axis across slices, where a NIfTI, NRRD or MetaImage file does not tell.
        skip_bad: leave damaged DICOM slices out instead of refusing the series.
        settings: ``key=value`` changes to the task that the weights carry.
        precision: ``auto``, ``fp32`` or ``bf16``; see ``Enhancer``.
        batch_size: tiles that the network gets at once; None: found, see ``Enhancer``.
        sampler: which regions run at which steps, see ``SamplerSection``; all steps unless told.
        steps: sampling steps; None: the task's, or all with a sampler.
        consistency: draw the output, reduced, nearer to the input.
        uncertainty: draws of each slice, two or more, whose deviation is written beside it.
        mean: draws of each slice, two or more, whose mean is written instead of the first draw.
        transfer_syntax: of a DICOM series, see ``io.SeriesSettings``.
        dates: of a DICOM series, see ``io.SeriesSettings``.
        resume: go on where an interrupted run stopped, see ``enhance_volume``.
        overwrite: replace an output folder that has files in it.
        announce: called once, with the loaded model and the volume, before the work begins.
        track: wraps the slices as they come, with their number, to show progress.

    Raises:
        MedQDMError: anything about input, weights, settings or output that the user can put right.
    """
    check_output(Path(series), Path(out), overwrite=overwrite or resume)
    volume = io.read(series, series=series_uid, slice_axis=slice_axis, skip_bad=skip_bad)
    enhancer = load_enhancer(
        task,
        weights,
        device=device,
        seed=seed,
        settings=settings,
        precision=precision,
        batch_size=batch_size,
        sampler=sampler,
        steps=steps,
        consistency=consistency,
        uncertainty=uncertainty,
        mean=mean,
    )
    announce(enhancer, volume)
    return enhance_volume(
        enhancer,
        volume,
        Path(out),
        file_format=file_format,
        transfer_syntax=transfer_syntax,
        dates=dates,
        resume=resume,
        overwrite=overwrite,
        track=track,
    )


def _checked_draws(uncertainty: int | None, mean: int | None) -> int:
    for name, draws in (("uncertainty", uncertainty), ("mean", mean)):
        if draws is not None and draws < 2:
            raise MedQDMError(f"--{name}: must be 2 draws or more, got {draws}; ask for 8")
    if uncertainty is not None and mean is not None and uncertainty != mean:
        raise MedQDMError(
            f"--mean: must be as many draws as --uncertainty, {uncertainty}, got {mean}; "
            "leave one of them out"
        )
    return uncertainty or mean or 1


def check_output(series: Path, out: Path, *, overwrite: bool, marker: str = io.RUN_FILE) -> None:
    """Refuse, before any work is done, an output folder that must not be written.

    Args:
        series: the input.
        out: the folder.
        overwrite: whether an earlier output may be replaced.
        marker: the file that tells an earlier output.

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
    check_folder(out, overwrite=overwrite, marker=marker)


def describe(enhancer: Enhancer) -> str:
    """The DICOM DerivationDescription: method, version, weights and settings; no paths."""
    task = enhancer.task
    sampler = task.diffusion.sampler
    steps = task.diffusion.sampling_steps or task.diffusion.num_steps
    consistency = ", drawn nearer to the input" if task.diffusion.consistency else ""
    mean = f", mean of {enhancer.draws} draws" if enhancer.mean else ""
    return (
        f"In-plane x{task.upscale} super-resolution by a quadtree diffusion model; detail is "
        f"synthetic. medqdm {__version__}, task {task.name}, weights sha256:{enhancer.sha256}, "
        f"seed {enhancer.seed}, sampler {sampler.name}, steps {steps}, "
        f"gamma {task.diffusion.gamma:g}{mean}{consistency}, "
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
        "draws": enhancer.draws,
        "mean": enhancer.mean,
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
