"""``medqdm evaluate``: how good."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer
from rich.table import Table

from medqdm.cli.options import (
    LARGEST_SEED,
    BundledTask,
    Data,
    Degradation,
    Device,
    Overwrite,
    Set,
    Weights,
)
from medqdm.cli.terminal import console, end_cleanly_on_sigterm, progress, say

if TYPE_CHECKING:
    from medqdm.evaluate import Evaluation


def evaluate(  # noqa: PLR0913, PLR0917  (one option each)
    data: Data,
    out: Annotated[Path, typer.Option("--out", help="Output folder.")] = Path("evaluation"),
    task: BundledTask = None,
    weights: Weights = None,
    device: Device = "auto",
    seed: Annotated[
        int, typer.Option(min=0, max=LARGEST_SEED, help="Seed of noise and degradation.")
    ] = 0,
    limit: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, help="Slices at the most, spread over the patients."),
    ] = None,
    roi: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Folder of masks, PATIENT.nii.gz or PATIENT.nrrd."),
    ] = None,
    use_lpips: Annotated[
        bool, typer.Option("--lpips", help="LPIPS too (needs its weights).")
    ] = False,
    mean: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option("--mean", min=2, metavar="N", help="The mean of N draws too."),
    ] = None,
    degradation: Annotated[
        Optional[Degradation],  # noqa: UP045
        typer.Option(help="Of the slices, instead of the task's; all: one after the other."),
    ] = None,
    settings: Set = None,
    overwrite: Overwrite = False,
) -> None:
    """Measure a model on volumes (or a prepared set), beside bicubic and Lanczos."""
    end_cleanly_on_sigterm()
    measure_and_show(
        data,
        out,
        degradation,
        task=task,
        weights=weights,
        device=device,
        seed=seed,
        limit=limit,
        roi=roi,
        use_lpips=use_lpips,
        mean=mean,
        settings=settings or (),
        overwrite=overwrite,
    )


def measure_and_show(
    data: Path, out: Path, degradation: Degradation | None, **options: Any
) -> None:
    """Measure a model and show its scores.

    Args:
        data: folder of volumes, or a prepared set.
        out: output folder.
        degradation: a preset instead of the task's own, or all.
        **options: others of ``evaluate_weights``.
    """
    from medqdm.evaluate import evaluate_degradations, evaluate_weights

    options["track"] = lambda pairs, total: progress(pairs, total, "slices")
    if degradation is Degradation.all:
        several = evaluate_degradations(data, out, announce=say, **options)
        for name, found in several.items():
            console.print(name, style="bold")
            console.print(_table_of(found))
        files = ", ".join(["results.md", "results.json", *several])
        console.print(f"written to {out}: {files}", soft_wrap=True)
        return
    preset = None if degradation is None else degradation.value
    console.print(_table_of(evaluate_weights(data, out, degradation=preset, **options)))
    files = ", ".join(["results.md", "results.json", *sorted(p.name for p in out.glob("*.png"))])
    console.print(f"written to {out}: {files}", soft_wrap=True)


def _table_of(found: "Evaluation") -> Table:
    table = Table("", *found.methods, box=None)
    for metric, unit in (("psnr_db", "dB"), ("ssim", ""), ("mae_hu", "HU")):
        means = [found.mean(metric, method) for method in found.methods]
        table.add_row(
            metric.partition("_")[0].upper(),
            *(f"{mean.mean:.4g} {unit}" if mean else "-" for mean in means),
        )
    return table
