"""``python -m studies.thresholds``: what the quadtree's threshold saves and costs."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from medqdm.cli.options import BundledTask, Data, Device, Overwrite, Set, Weights
from medqdm.cli.terminal import console, end_cleanly_on_sigterm, progress
from studies.command import app_of, run
from studies.options import THRESHOLDS, Limit, Out, Preset, Seed, one_preset


def thresholds(  # noqa: PLR0913, PLR0917  (one option each)
    data: Data,
    out: Out = Path("evaluation"),
    values: Annotated[
        str, typer.Option("--thresholds", metavar="S,S,...", help="Thresholds to compare.")
    ] = THRESHOLDS,
    task: BundledTask = None,
    weights: Weights = None,
    device: Device = "auto",
    seed: Seed = 0,
    limit: Limit = None,
    degradation: Preset = None,
    settings: Set = None,
    overwrite: Overwrite = False,
) -> None:
    """Compare thresholds of the quadtree, beside bicubic and Lanczos."""
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
    _show(data, out, values, degradation=preset, **options)


def _show(data: Path, out: Path, thresholds: str, **options: Any) -> None:
    from studies.thresholds import parse_thresholds, study_thresholds

    found = study_thresholds(
        data,
        out,
        thresholds=parse_thresholds(thresholds),
        track=lambda pairs, total: progress(pairs, total, "slices"),
        **options,
    )
    columns = {
        "psnr_db": ("PSNR [dB]", ".2f"),
        "ssim": ("SSIM", ".4f"),
        "tokens": ("tokens", ".0f"),
        "seconds": ("s/slice", ".3f"),
    }
    table = Table("", *(title for title, _ in columns.values()), box=None)
    for name in found.methods:
        means = [(found.mean(metric, name), style) for metric, (_, style) in columns.items()]
        cells = ["-" if mean is None else f"{mean.mean:{style}}" for mean, style in means]
        table.add_row(name, *cells, style="bold" if name == found.ours else None)
    console.print(table)
    console.print(
        f"written to {out}: thresholds.md, thresholds.json, thresholds.png", soft_wrap=True
    )


app = app_of(thresholds)

if __name__ == "__main__":
    run(app)
