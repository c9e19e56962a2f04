"""``python -m studies.detectability``: whether faint lesions survive."""

from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from medqdm.cli.options import BundledTask, Data, Device, Overwrite, Set, Weights
from medqdm.cli.terminal import console, end_cleanly_on_sigterm, progress
from studies.command import app_of, run
from studies.options import THRESHOLDS, Limit, Out, Preset, Seed, Thresholds, one_preset


def detectability(  # noqa: PLR0913, PLR0917  (one option each)
    data: Data,
    out: Out = Path("evaluation"),
    thresholds: Thresholds = THRESHOLDS,
    against: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            metavar="FILE",
            help="Other weights beside the model, or 'NAME: weights=FILE KEY=VALUE ...'; "
            "repeatable.",
        ),
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
    """Put low-contrast discs into slices and look for them, at each threshold."""
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
    _show(data, out, thresholds, degradation=preset, against=against or (), **options)


def _show(data: Path, out: Path, thresholds: str, **options: Any) -> None:
    from studies.detectability import study_lesions
    from studies.detectability.lesions_report import verdicts
    from studies.thresholds import parse_thresholds

    options["thresholds"] = parse_thresholds(thresholds)
    found = study_lesions(
        data, out, track=lambda cases, total: progress(cases, total, "slices"), **options
    )
    for line in verdicts(found):
        console.print(line, soft_wrap=True, highlight=False)
    console.print(
        f"written to {out}: lesions.md, lesions.json, lesions.png, discs.png", soft_wrap=True
    )


app = app_of(detectability)

if __name__ == "__main__":
    run(app)
