"""``medqdm enhance``: one series, or all of a folder."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from medqdm.cli.options import (
    LARGEST_SEED,
    BundledTask,
    Dates,
    Device,
    Format,
    Overwrite,
    Precision,
    Sampler,
    Set,
    Syntax,
    Weights,
)
from medqdm.cli.terminal import console, duration, end_cleanly_on_sigterm, messages, progress, warn
from medqdm.errors import MedQDMError

if TYPE_CHECKING:
    from medqdm.enhance import WriteOptions
    from medqdm.loading import ModelOptions


def enhance(  # noqa: PLR0913, PLR0917  (one option each)
    series: Annotated[Path, typer.Argument(help="DICOM folder, or a NIfTI, NRRD or MHA file.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Output folder.")],
    task: BundledTask = None,
    weights: Weights = None,
    device: Device = "auto",
    seed: Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="Seed of the noise.")] = 0,
    file_format: Annotated[Format, typer.Option("--format")] = Format.dicom,
    series_uid: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--series", help="SeriesInstanceUID (or its end) where there are several."),
    ] = None,
    slice_axis: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=0, max=2, help="NIfTI, NRRD, MHA: array axis across slices."),
    ] = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave damaged slices out instead of refusing all.")
    ] = False,
    any_values: Annotated[
        bool, typer.Option("--any-values", help="Take values that cannot be HU too.")
    ] = False,
    settings: Set = None,
    precision: Annotated[
        Precision,
        typer.Option(
            help="auto: bf16 where it is fast and, on a crop of the middle slice, changes 99.9 % "
            "of the pixels by at most 15 HU; else fp32."
        ),
    ] = Precision.auto,
    batch_size: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, help="Tiles at once; default: as many as memory holds."),
    ] = None,
    sampler: Annotated[
        Optional[Sampler],  # noqa: UP045
        typer.Option(help="Which regions run at which steps; default: the task's."),
    ] = None,
    steps: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(
            min=1, max=10_000, help="Sampling steps; default: the task's, all with --sampler."
        ),
    ] = None,
    consistency: Annotated[
        bool, typer.Option("--consistency", help="Draw the output, reduced, nearer to the input.")
    ] = False,
    uncertainty: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(metavar="N", help="Draw N samples, write their deviation in HU."),
    ] = None,
    mean: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(metavar="N", help="Draw N samples, write their mean, and the deviation."),
    ] = None,
    transfer_syntax: Annotated[
        Syntax, typer.Option(help="DICOM: how the pixels are stored, without loss.")
    ] = Syntax.explicit,
    dates: Annotated[
        Dates, typer.Option(help="DICOM: the new series' dates; source: as in the input.")
    ] = Dates.now,
    segmentation: Annotated[
        bool, typer.Option("--segmentation", help="DICOM: the refined regions as an object too.")
    ] = False,
    parametric_map: Annotated[
        bool, typer.Option("--parametric-map", help="DICOM: the uncertainty as an object too.")
    ] = False,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Leave out series whose output is finished; with --overwrite, make outdated ones "
            "anew.",
        ),
    ] = False,
    overwrite: Overwrite = False,
) -> None:
    """Enhance a CT series in plane and write a new one; the input is never touched.

    Of a folder with several series, each is enhanced into a folder of its own. The exit code is 0
    if all is well, 2 if nothing was written, 3 if a series or some of its slices are missing.
    """
    from medqdm.batch import find_many
    from medqdm.enhance import enhance_series

    end_cleanly_on_sigterm()
    model: ModelOptions = {
        "task": task,
        "weights": weights,
        "device": device,
        "seed": seed,
        "settings": settings or (),
        "precision": precision.value,
        "batch_size": batch_size,
        "sampler": sampler.value if sampler else None,
        "steps": steps,
        "consistency": consistency,
        "uncertainty": uncertainty,
        "mean": mean,
    }
    output: WriteOptions = {
        "file_format": file_format.value,
        "transfer_syntax": transfer_syntax.value,
        "dates": dates.value,
        "segmentation": segmentation,
        "parametric_map": parametric_map,
        "resume": resume,
        "overwrite": overwrite,
        "track": lambda done, total: progress(done, total, "slices"),
    }
    many = None if series_uid else find_many(series)
    if many is not None and len(many.series) > 1:
        if slice_axis is not None:
            raise MedQDMError(
                f"{series}: --slice-axis must go with one file, got {len(many.series)} series; "
                "give the files one by one"
            )
        _enhance_many(series, out, many, model, output, skip_bad=skip_bad, any_values=any_values)
        return
    if many is not None and [found.kind for found in many.series] in (["nifti"], ["itk"]):
        series = many.series[0].path
    summary = enhance_series(
        series,
        out,
        series_uid=series_uid,
        slice_axis=slice_axis,
        skip_bad=skip_bad,
        any_values=any_values,
        announce=_announce,
        **model,
        **output,
    )
    if summary.finished is not None:
        console.print("finished before, nothing to do")
    if summary.redone:
        warn(summary.warnings[-1])
    numbers = summary.numbers()
    console.print(
        f"{numbers['slices']} slices, {numbers['seconds_per_slice']:.2f} s a slice, "
        f"{100 * numbers['share_refined']:.1f} % refined, "
        f"largest shift of a flat area {_shift(numbers)}, "
        f"LR consistency {numbers['lr_consistency_hu']:.1f} HU rms, "
        f"{numbers['clipped_voxels']} voxels clipped",
        soft_wrap=True,
    )
    text = f"written to {out} (report.html tells what was done)"
    console.print(text, soft_wrap=True, markup=False)
    if summary.left_out:
        text = f"incomplete: {summary.left_out} image(s) left out, see the warnings"
        messages.print(text, style="red", soft_wrap=True, highlight=False, markup=False)
        raise typer.Exit(3)


def _shift(numbers: dict[str, Any]) -> str:
    hu, place = numbers["flat_shift_hu"], numbers["flat_shift_place"]
    return f"none ({place})" if hu is None else f"{hu:+.1f} HU ({place})"


def _enhance_many(
    root: Path,
    out: Path,
    found: Any,
    model: "ModelOptions",
    output: "WriteOptions",
    *,
    skip_bad: bool,
    any_values: bool,
) -> None:
    """All series of a folder; exit code 3 if one was refused, failed or lacks slices."""
    from collections import Counter

    from medqdm.batch import DONE, SUMMARY_FILE, enhance_all
    from medqdm.enhance import check_output, check_overlays
    from medqdm.loading import load_enhancer

    check_output(root, out, overwrite=output["overwrite"] or output["resume"], marker=SUMMARY_FILE)
    check_overlays(
        output["file_format"],
        model["uncertainty"] or model["mean"] or 1,
        segmentation=output["segmentation"],
        parametric_map=output["parametric_map"],
    )
    console.print(f"{len(found.series)} series, each to a folder of its own", highlight=False)
    for warning in found.warnings:
        warn(warning)
    for line in found.skipped_lines():
        console.print(f"  {line}", soft_wrap=True, highlight=False, markup=False)

    def report(row: Any) -> None:
        what = row.output if row.status in DONE else row.message
        if row.left_out:
            what = f"{what} ({row.left_out} image(s) left out)"
        console.print(f"  {row.status}: {what}", soft_wrap=True, highlight=False, markup=False)

    rows = enhance_all(
        load_enhancer(**model),
        root,
        out,
        found=found,
        skip_bad=skip_bad,
        any_values=any_values,
        announce=_announce,
        report=report,
        **output,
    )
    counts = Counter(row.status for row in rows if row.status != "skipped")
    counted = ", ".join(f"{number} {status}" for status, number in counts.items())
    text = f"{counted}; written to {out}, {SUMMARY_FILE} lists them"
    console.print(text, soft_wrap=True, markup=False)
    failures = [row for row in rows if row.is_failure]
    for row in failures:
        status = "incomplete" if row.status in DONE else row.status
        what = "may be slices" if status == "skipped" else "series"
        text = f"{status}: {what} {row.series}: {row.message}"
        messages.print(text, style="red", soft_wrap=True, highlight=False, markup=False)
    if failures:
        raise typer.Exit(3)


def _announce(enhancer: Any, volume: Any) -> None:
    """One line saying what was found (nothing of the patient), and the warnings."""
    slices, height, width = volume.shape
    task = enhancer.task
    seconds = enhancer.estimate_seconds(volume)
    console.print(
        f"{volume.source.kind} series: {slices} slices of {width} x {height}, "
        f"{volume.spacing_mm[1]:.3g} mm pixels -> x{task.upscale} ({task.name}), "
        f"s = {task.quadtree.threshold:g} ({task.threshold_hu:g} HU), on {enhancer.device}, "
        f"about {duration(seconds)} in {enhancer.precision}",
        soft_wrap=True,
        highlight=False,
    )
    for warning in enhancer.warnings(volume):
        warn(warning)
