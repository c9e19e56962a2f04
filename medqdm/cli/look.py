"""``medqdm info``, ``review`` and ``tasks``: look at what is there."""

from pathlib import Path
from typing import Annotated, Any, Optional

import typer
from rich.markup import escape
from rich.table import Table

from medqdm.cli.terminal import console, end_cleanly_on_sigterm, say


def info(
    series: Annotated[Path, typer.Argument(help="A folder or a file.")],
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
) -> None:
    """Show the CT series that lie somewhere, and what the reader noticed."""
    import json
    from dataclasses import asdict

    from medqdm import io

    inventory = io.take_inventory(series)
    if as_json:
        told = asdict(
            inventory, dict_factory=lambda pairs: {k: v for k, v in pairs if k != "files"}
        )
        console.print_json(json.dumps(told, default=str))
        return
    for found in inventory.series:
        _show_series(found)
    for warning in inventory.warnings:
        _show(f"[yellow]warning:[/] {escape(warning)}", markup=True)
    for line in inventory.skipped_lines():
        _show(line)
    if not inventory.series:
        _show("no CT series here")


def _show_series(found: Any) -> None:
    """What the reader saw of one series, and what ``enhance`` would make of it."""
    spacing = " x ".join(f"{s:.4g}" for s in found.spacing_mm)
    _show(
        f"{found.kind} {found.series_instance_uid or found.path.name}: "
        f"{found.num_slices} slices of {found.matrix[1]} x {found.matrix[0]}, "
        f"spacing (z, y, x) {spacing} mm"
    )
    facts = [
        found.acquisition,
        f"{found.num_gaps} gap(s)" if found.num_gaps else "no gaps",
        f"tilt {found.tilt_degrees:g} degrees" if found.tilt_degrees else "no tilt",
        f"padding {found.padding}" if found.padding else "no padding",
        *found.encoding,
    ]
    if found.kind == "dicom" and not found.problem:
        _show("  " + ", ".join(fact for fact in facts if fact))
    for warning in (*found.warnings, *(() if found.problem else found.doubts())):
        _show(f"  [yellow]warning:[/] {escape(warning)}", markup=True)
    if found.problem:
        _show(f"  [red]refused:[/] {escape(found.problem)}", markup=True)
        return
    how = " with --slice-axis" if found.needs_slice_axis else ""
    for upscale in (4, 8):
        out = found.enlarged(upscale)
        _show(
            f"  can be enhanced{how} x{upscale}: {found.num_slices} slices of "
            f"{out.matrix[1]} x {out.matrix[0]}, spacing (y, x) {out.spacing_mm[0]:.4g} x "
            f"{out.spacing_mm[1]:.4g} mm, about {out.num_bytes / 1e6:.0f} MB"
        )


def _show(text: str, *, markup: bool = False) -> None:
    console.print(text, soft_wrap=True, highlight=False, markup=markup)


def review(
    out: Annotated[Path, typer.Argument(help="A folder that medqdm enhance wrote.")],
    source: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="The series that it was made from; without it nothing is compared."),
    ] = None,
    series_uid: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--series", help="SeriesInstanceUID (or its end) of the source."),
    ] = None,
    slice_axis: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=0, max=2, help="NIfTI, NRRD, MHA: array axis across slices."),
    ] = None,
    ratings: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(metavar="FILE", help="CSV file that a rating form appends to."),
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free one.")] = 0,
    no_browser: Annotated[
        bool, typer.Option("--no-browser", help="Print the address, open nothing.")
    ] = False,
) -> None:
    """Look at an enhanced series beside its source, in the browser of this machine."""
    import webbrowser

    from medqdm.review import Viewer, load_review

    end_cleanly_on_sigterm()
    loaded = load_review(out, source, series=series_uid, slice_axis=slice_axis)
    with Viewer(loaded, ratings, port=port) as viewer:
        print(viewer.url, flush=True)  # noqa: T201  (whole, however narrow the terminal is)
        say("Ctrl+C ends the review")
        if not no_browser:
            webbrowser.open(viewer.url)
        try:
            viewer.wait()
        except KeyboardInterrupt:
            say("ended")


def tasks() -> None:
    """List the tasks that come with medqdm."""
    from medqdm.config import load_task, task_names

    table = Table("task", "what it does", "threshold", box=None)
    for name in task_names():
        task = load_task(name)
        table.add_row(
            name,
            task.description,
            f"s = {task.quadtree.threshold:g} ({task.threshold_hu:g} HU)",
        )
    console.print(table)
