"""``python -m studies.error_decomposition``: where decibels are lost."""

from pathlib import Path
from typing import Any

from rich.table import Table

from medqdm.cli.options import BundledTask, Data, Device, Overwrite, Set, Weights
from medqdm.cli.terminal import console, end_cleanly_on_sigterm, progress
from studies.command import app_of, run
from studies.options import Limit, Out, Preset, Seed, one_preset


def error_decomposition(  # noqa: PLR0913, PLR0917  (one option each)
    data: Data,
    out: Out = Path("evaluation"),
    task: BundledTask = None,
    weights: Weights = None,
    device: Device = "auto",
    seed: Seed = 0,
    limit: Limit = None,
    degradation: Preset = None,
    settings: Set = None,
    overwrite: Overwrite = False,
) -> None:
    """Measure what each stage loses, with the reference in its place."""
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
    _show(data, out, degradation=preset, **options)


def _show(data: Path, out: Path, **options: Any) -> None:
    from studies.error_decomposition import study_budget

    found = study_budget(
        data, out, track=lambda pairs, total: progress(pairs, total, "slices"), **options
    )
    table = Table("", "PSNR [dB]", "SSIM", box=None)
    for stage in found.methods:
        psnr, ssim = found.mean("psnr_db", stage), found.mean("ssim", stage)
        cells = (f"{m.mean:{f}}" if m else "-" for m, f in ((psnr, ".2f"), (ssim, ".4f")))
        table.add_row(stage, *cells)
    console.print(table)
    console.print(f"written to {out}: budget.md, budget.json", soft_wrap=True)


app = app_of(error_decomposition)

if __name__ == "__main__":
    run(app)
