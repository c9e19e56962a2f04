"""``python -m studies.samplers``: settings of the sampler side by side."""

from pathlib import Path
from typing import Annotated, Any, Optional

import typer
from rich.table import Table

from medqdm.cli.options import BundledTask, Data, Device, Overwrite, Set, Weights
from medqdm.cli.terminal import console, end_cleanly_on_sigterm, progress, say
from studies.command import app_of, run
from studies.options import Limit, Out, Preset, Seed, one_preset


def compare(  # noqa: PLR0913, PLR0917  (one option each)
    data: Data,
    out: Out = Path("evaluation"),
    samplers: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            metavar="ROWS",
            help="What to compare: default, names of rows, or 'NAME: KEY=VALUE ...'; repeatable.",
        ),
    ] = None,
    student: Annotated[
        Optional[list[Path]],  # noqa: UP045
        typer.Option(help="Weights of another model, at 1, 2 and 4 steps; repeatable."),
    ] = None,
    task: BundledTask = None,
    weights: Weights = None,
    device: Device = "auto",
    seed: Seed = 0,
    limit: Limit = None,
    degradation: Preset = None,
    settings: Set = None,
    overwrite: Overwrite = False,
) -> None:
    """Compare samplers, their cost and their controls."""
    end_cleanly_on_sigterm()
    preset = one_preset(degradation)
    options: dict[str, Any] = {
        "task": task,
        "weights": weights,
        "device": device,
        "seed": seed,
        "limit": limit,
        "settings": settings or (),
        "overwrite": overwrite,
    }
    if preset is not None:
        options["settings"] = [*options["settings"], f"test_degradation={preset}"]
    given = {"samplers": samplers or ["default"], "students": student or ()}
    _show(data, out, **given, **options)


def _show(data: Path, out: Path, **options: Any) -> None:
    from studies.samplers import compare_samplers

    found = compare_samplers(
        data,
        out,
        **options,
        announce=say,
        track=lambda blocks, total: progress(blocks, total, "patients"),
    )
    columns = {
        "psnr_db": ("PSNR [dB]", ".2f"),
        "edge_rise_ratio": ("edge / truth", ".2f"),
        "region_steps": ("region-steps", ".0f"),
        "seconds": ("s/slice", ".2f"),
    }
    table = Table("", *(title for title, _ in columns.values()), box=None)
    for name, measured in found.results.items():
        means = [(measured.mean(metric), style) for metric, (_, style) in columns.items()]
        cells = ["-" if value is None else f"{value:{style}}" for value, style in means]
        table.add_row(name, *cells, style="bold" if name == found.best() else None)
    console.print(table)
    console.print(f"best: {found.best()}", highlight=False)
    console.print(f"written to {out}: samplers.md, samplers.json, samplers.png", soft_wrap=True)


app = app_of(compare)

if __name__ == "__main__":
    run(app)
