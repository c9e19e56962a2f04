"""Enhance: the pipeline from a series to its super-resolved series, in one call."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, TypedDict, Unpack, cast

import numpy as np
from numpy.typing import NDArray

from medqdm import io, picture
from medqdm.enhancer import Enhancer
from medqdm.errors import MedQDMError
from medqdm.io.dicom_objects import write_parametric_map, write_segmentation
from medqdm.io.slice_archive import SliceArchive
from medqdm.io.whole import check_folder
from medqdm.jobs import EnhancedSlice
from medqdm.loading import ModelOptions, load_enhancer
from medqdm.record import Summary, describe, run_record
from medqdm.report import ReportContent, SlicePair, render_report, tally_slice
from medqdm.streaming import map_behind
from medqdm.version import __version__
from medqdm.volume import Volume

REPORT_FILE = "report.html"
OVERLAYS = "overlays"  # the folder of DICOM objects beside the series
_TALLY = "tally"
_CELL_LR_PX = 2
Track = Callable[[Iterable[EnhancedSlice], int], Iterable[EnhancedSlice]]


def enhance_volume(  # noqa: PLR0913  (all by keyword but three)
    enhancer: Enhancer,
    volume: Volume,
    out: Path,
    *,
    file_format: str = "dicom",
    transfer_syntax: str = "explicit",
    dates: str = "now",
    segmentation: bool = False,
    parametric_map: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    track: Track = lambda slices, _total: slices,
) -> Summary:
    """Enhance a volume and write it into a folder that appears whole or not at all.

    The folder holds the DICOM series (or ``enhanced.nii.gz``, ``.nrrd``, ``.mha``), ``run.json``
    (what was done, with what), ``report.html`` (the same for people, with pictures),
    ``comparison.png`` (the middle slice before and after) and ``refined.npz`` (``refined``:
    ``(z, rows, columns)`` bool cells of 2 x 2 input pixels); with several draws
    ``uncertainty.npz`` too (``deviation_hu``: their standard deviation per output pixel,
    ``(z, y, x)`` float16 in HU).

    Args:
        enhancer: the loaded model.
        volume: the input; its files are never touched.
        out: the folder.
        file_format: one of ``io.FORMATS``.
        transfer_syntax: of a DICOM series, see ``io.SeriesSettings``.
        dates: of a DICOM series, see ``io.SeriesSettings``.
        segmentation: write the refined regions as a DICOM object into ``overlays`` too.
        parametric_map: the same for the uncertainty of a model with several draws.
        resume: do nothing if the folder holds the finished output of the same input, weights and
            settings. Whatever else is there is replaced with ``overwrite`` only.
        overwrite: replace a folder that has files in it, at the very end.
        track: wraps the slices as they come, with their number, to show progress.

    Raises:
        MedQDMError: the output folder is in use, or the format cannot hold this geometry.
    """
    check_overlays(
        file_format, enhancer.draws, segmentation=segmentation, parametric_map=parametric_map
    )
    enhancer.prepare(volume)
    settings = _series_settings(enhancer, transfer_syntax, dates)
    overlays = {"segmentation": segmentation, "parametric_map": parametric_map}
    identity = _identity(enhancer, volume, settings, file_format, overlays)
    if resume and (finished := _finished(out, identity, volume, overwrite=overwrite)):
        return finished
    with io.open_output(
        volume,
        out,
        settings,
        file_format=file_format,
        bytes_beside=2 if enhancer.draws > 1 else 0,  # deviations, float16
        bytes_at_end=4 if parametric_map else 0,  # float32
        overwrite=overwrite,
    ) as output:
        summary = _enhance_into(output, enhancer, volume, track)
        output.finish()
        summary.clipped, summary.left_out = output.num_clipped, volume.source.left_out
        _add_companions(output, enhancer, volume)
        run = run_record(enhancer, volume, summary, file_format)
        run["output"] |= {
            "transfer_syntax": transfer_syntax,
            "identity": identity,
            "num_bytes": _num_bytes(output.folder),
            "overlays": _add_overlays(output, enhancer, overlays),
        }
        _add_report(output, volume, run)
        text = json.dumps(run, indent=2) + "\n"
        (output.folder / io.RUN_FILE).write_text(text, encoding="utf-8")
    return summary


def _enhance_into(output: io.Output, enhancer: Enhancer, volume: Volume, track: Track) -> Summary:
    """Write the slices; their figures."""
    summary = Summary(warnings=enhancer.warnings(volume))

    def measure(done: EnhancedSlice) -> tuple[EnhancedSlice, NDArray[Any]]:
        lr_hu = volume.hu[done.z]
        summary.add(done, lr_hu, None if volume.padding is None else volume.padding[done.z])
        return done, tally_slice(lr_hu, done.hu, done.refined, done.deviation_hu)

    def take(measured: tuple[EnhancedSlice, NDArray[Any]]) -> None:
        done, tally = measured
        arrays: dict[str, NDArray[Any]] = {"refined": done.refined, _TALLY: tally}
        if done.deviation_hu is not None:
            arrays["deviation_hu"] = done.deviation_hu.astype(np.float16)
        output.take(done.z, done.hu, arrays)

    slices = track(enhancer.slices(volume), len(volume.hu))
    for _ in map_behind(take, map_behind(measure, slices, 1), io.SLICES_BEHIND):
        pass
    summary.count_redone(len(enhancer.redone))
    return summary


def _add_companions(output: io.Output, enhancer: Enhancer, volume: Volume) -> None:
    """What lies beside the enhanced pixels: the cells, the deviation and a picture."""
    archives = {"refined": "refined"}
    if enhancer.draws > 1:
        archives["deviation_hu"] = "uncertainty"
    for array, name in archives.items():
        file = output.folder / f"{name}.npz"
        with closing(SliceArchive(file, array, len(volume.hu))) as archive:
            for image in output.arrays(array):
                archive.add(image)
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


def _add_overlays(output: io.Output, enhancer: Enhancer, overlays: Mapping[str, bool]) -> list[str]:
    """The DICOM objects that were asked for, and their names in the output folder."""
    folder = output.folder / OVERLAYS
    files: list[Path] = []
    if any(overlays.values()):
        folder.mkdir()
    if overlays["segmentation"]:
        files += write_segmentation(
            output.slices,
            lambda z: output.array("refined", z),
            folder,
            cell_px=_CELL_LR_PX * enhancer.task.upscale,
            threshold_hu=enhancer.task.threshold_hu,
        )
    if overlays["parametric_map"]:
        files += write_parametric_map(
            output.slices, lambda z: output.array("deviation_hu", z), folder, draws=enhancer.draws
        )
    return [f"{OVERLAYS}/{file.name}" for file in files]


def _add_report(output: io.Output, volume: Volume, run: Mapping[str, Any]) -> None:
    def pair(z: int) -> SlicePair:
        deviation = None
        if run["draws"] > 1:
            deviation = output.array("deviation_hu", z).astype(np.float32)
        return SlicePair(z, volume.hu[z], output.hu(z), output.array("refined", z), deviation)

    tallies = np.stack(list(output.arrays(_TALLY)))
    html = render_report(ReportContent(run, volume, tallies, pair))
    (output.folder / REPORT_FILE).write_text(html, encoding="utf-8")


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
    enhancer: Enhancer,
    volume: Volume,
    settings: io.SeriesSettings,
    file_format: str,
    overlays: Mapping[str, bool],
) -> str:
    """A digest of all that the files of an output depend on."""
    parts = [io.identify(volume, settings), settings.transfer_syntax, settings.dates, file_format,
             str(enhancer.draws), sorted(overlays.items())]  # fmt: skip
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _num_bytes(folder: Path) -> int:
    """Size of the enhanced slices, which tells files that were cut short later."""
    files = (*folder.glob("IM*.dcm"), *folder.glob("enhanced.*"))
    return sum(file.stat().st_size for file in files)


def _finished(out: Path, identity: str, volume: Volume, *, overwrite: bool) -> Summary | None:
    """The figures of an earlier run with the same identity, if its output is still whole.

    Raises:
        MedQDMError: an output is there, but another one or not all of it, and it may not be
            replaced.
    """
    if not (out / io.RUN_FILE).is_file():
        return None
    with suppress(OSError, ValueError, KeyError, TypeError):
        run = json.loads((out / io.RUN_FILE).read_text(encoding="utf-8"))
        output = run["output"]
        files_are_there = io.is_complete(volume, out, output["format"]) and all(
            (out / name).is_file() for name in output["overlays"]
        )
        is_same = output["identity"] == identity and output["num_bytes"] == _num_bytes(out)
        if is_same and files_are_there:
            return Summary(
                len(volume.hu),
                finished=run["summary"],
                warnings=run["warnings"],
                left_out=volume.source.left_out,
            )
    if overwrite:
        return None
    raise MedQDMError(
        f"{out}: --resume needs the finished output of this very input and these settings, or "
        "none, got another or an incomplete one; add --overwrite to make it anew, or choose "
        "another folder"
    )


class WriteOptions(TypedDict, total=False):
    """What ``enhance_volume`` takes beside the model, the volume and the folder; see there."""

    file_format: str
    transfer_syntax: str
    dates: str
    segmentation: bool
    parametric_map: bool
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
    any_values: bool = False,
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
        any_values: take values that cannot be HU too: normalised ones and label maps.
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
    check_overlays(
        options.get("file_format", "dicom"),
        options.get("uncertainty") or options.get("mean") or 1,
        segmentation=options.get("segmentation", False),
        parametric_map=options.get("parametric_map", False),
    )
    volume = io.read(
        series,
        series=series_uid,
        slice_axis=slice_axis,
        skip_bad=skip_bad,
        any_values=any_values,
    )
    enhancer = load_enhancer(**cast(ModelOptions, model))
    announce(enhancer, volume)
    return enhance_volume(enhancer, volume, Path(out), **cast(WriteOptions, output))


def check_overlays(
    file_format: str, draws: int, *, segmentation: bool, parametric_map: bool
) -> None:
    """Refuse, before any work is done, DICOM objects that an output cannot have.

    Args:
        file_format: of the output.
        draws: of each slice.
        segmentation: whether the refined regions are asked for.
        parametric_map: whether the uncertainty is.

    Raises:
        MedQDMError: the output is no DICOM, or there is no uncertainty.
    """
    for option, is_asked in (("segmentation", segmentation), ("parametric-map", parametric_map)):
        if is_asked and file_format != "dicom":
            raise MedQDMError(
                f"--{option}: must go with --format dicom, got {file_format}; leave it out"
            )
    if parametric_map and draws < 2:
        raise MedQDMError(
            "--parametric-map: must go with several draws of each slice, got one; "
            "add --uncertainty 8"
        )


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
