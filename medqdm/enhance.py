"""Enhance: the pipeline from a series to its super-resolved series, in one call."""

import hashlib
import json
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypedDict, Unpack, cast

import numpy as np

from medqdm import io, picture
from medqdm.enhancer import Enhancer
from medqdm.errors import MedQDMError
from medqdm.io.slice_archive import SliceArchive
from medqdm.io.whole import check_folder
from medqdm.jobs import EnhancedSlice
from medqdm.loading import ModelOptions, load_enhancer
from medqdm.record import Summary, describe, run_record
from medqdm.streaming import map_behind
from medqdm.version import __version__
from medqdm.volume import Volume

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


class WriteOptions(TypedDict, total=False):
    """What ``enhance_volume`` takes beside the model, the volume and the folder; see there."""

    file_format: str
    transfer_syntax: str
    dates: str
    resume: bool
    overwrite: bool
    track: Track


class EnhanceOptions(ModelOptions, WriteOptions, total=False):
    """All that is said of the model and of the output."""


def enhance_series(
    series: str | Path,
    out: str | Path,
    *,
    series_uid: str | None = None,
    slice_axis: int | None = None,
    skip_bad: bool = False,
    announce: Callable[[Enhancer, Volume], None] = lambda _enhancer, _volume: None,
    **options: Unpack[EnhanceOptions],
) -> Summary:
    """Read a series, enhance it, write it: what ``medqdm enhance`` does, in one call.

    Args:
        series: DICOM folder, or a NIfTI, NRRD or MetaImage file.
        out: folder to write, see ``enhance_volume``.
        series_uid: SeriesInstanceUID, where the folder holds several series.
        slice_axis: array axis across slices, where a NIfTI, NRRD or MetaImage file does not tell.
        skip_bad: leave damaged DICOM slices out instead of refusing the series.
        announce: called once, with the loaded model and the volume, before the work begins.
        **options: of the model (``task``, ``weights``, ``device``, ``seed``, ``steps`` and more,
            see ``ModelOptions``) and of the output (``file_format``, ``overwrite`` and more, see
            ``enhance_volume``).

    Raises:
        MedQDMError: anything about input, weights, settings or output that the user can put right.
        TypeError: no such option.
    """
    unknown = set(options) - set(EnhanceOptions.__annotations__)
    if unknown:
        raise TypeError(f"enhance_series() got an unexpected option: {', '.join(sorted(unknown))}")
    model = {name: value for name, value in options.items() if name in ModelOptions.__annotations__}
    output = {name: value for name, value in options.items() if name not in model}
    replaces = options.get("overwrite", False) or options.get("resume", False)
    check_output(Path(series), Path(out), overwrite=replaces)
    volume = io.read(series, series=series_uid, slice_axis=slice_axis, skip_bad=skip_bad)
    enhancer = load_enhancer(**cast(ModelOptions, model))
    announce(enhancer, volume)
    return enhance_volume(enhancer, volume, Path(out), **cast(WriteOptions, output))


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
