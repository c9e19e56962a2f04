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
from medqdm.errors import MedQDMError

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
    against: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            metavar="FILE",
            help="Other weights beside the model, or 'NAME: weights=FILE KEY=VALUE ...'; "
            "repeatable.",
        ),
    ] = None,
    samplers: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            metavar="ROWS",
            help="Compare samplers instead: default, names of rows, or 'NAME: KEY=VALUE ...'; "
            "repeatable.",
        ),
    ] = None,
    student: Annotated[
        Optional[list[Path]],  # noqa: UP045
        typer.Option(help="With --samplers: weights of a distilled model; repeatable."),
    ] = None,
    mean: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option("--mean", min=2, metavar="N", help="The mean of N draws too."),
    ] = None,
    degradation: Annotated[
        Optional[Degradation],  # noqa: UP045
        typer.Option(help="Of the slices, instead of the task's; all: one after the other."),
    ] = None,
    thresholds: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            metavar="S,S,...",
            help="Compare thresholds of the quadtree instead, such as 0,0.03,0.06,0.09,0.15,0.3.",
        ),
    ] = None,
    find_lesions: Annotated[
        bool,
        typer.Option(
            "--lesions", help="Put low-contrast discs in and look for them, at each threshold."
        ),
    ] = False,
    budget: Annotated[
        bool, typer.Option("--budget", help="What each stage loses, with the truth in its place.")
    ] = False,
    settings: Set = None,
    overwrite: Overwrite = False,
) -> None:
    """Measure a model on volumes (or a prepared set), beside bicubic and Lanczos."""
    end_cleanly_on_sigterm()
    common: dict[str, Any] = {
        "task": task,
        "weights": weights,
        "device": device,
        "seed": seed,
        "limit": limit,
        "settings": settings or (),
        "overwrite": overwrite,
    }
    beside = {"--roi": roi, "--lpips": use_lpips, "--against": against, "--mean": mean}
    study = _study_of(
        {
            "--samplers": bool(samplers or student),
            "--thresholds": thresholds is not None and not find_lesions,
            "--lesions": find_lesions,
            "--budget": budget,
        }
    )
    if study is not None:
        _refuse(study, beside, fine={"--lesions": ("--against",)}.get(study, ()))
        preset = _one_preset(study, degradation)
    if study == "--samplers":
        given = {"samplers": samplers or ["default"], "students": student or ()}
        if preset is not None:
            common["settings"] = [*common["settings"], f"test_degradation={preset}"]
        _evaluate_samplers(data, out, **given, **common)
    elif study == "--thresholds":
        _evaluate_thresholds(data, out, thresholds or "", degradation=preset, **common)
    elif study == "--lesions":
        _evaluate_lesions(
            data, out, thresholds, degradation=preset, against=against or (), **common
        )
    elif study == "--budget":
        _evaluate_budget(data, out, degradation=preset, **common)
    else:
        shown = {"roi": roi, "use_lpips": use_lpips, "against": against or (), "mean": mean}
        _evaluate_weights(data, out, degradation, **shown, **common)


def _study_of(asked: dict[str, bool]) -> str | None:
    """The study that was asked for; None: the plain evaluation."""
    names = [name for name, is_asked in asked.items() if is_asked]
    if len(names) > 1:
        raise MedQDMError(
            f"evaluate: must be one study at a time, got {' and '.join(names)}; "
            "run one after the other"
        )
    return names[0] if names else None


def _refuse(study: str, options: dict[str, Any], *, fine: tuple[str, ...]) -> None:
    """Refuse options that a study would not heed."""
    given = [name for name, value in options.items() if value and name not in fine]
    if given:
        raise MedQDMError(
            f"{study}: must go without {' and '.join(given)}, got "
            f"{'it' if len(given) == 1 else 'them'}; leave it out"
        )


def _one_preset(study: str, degradation: Degradation | None) -> str | None:
    if degradation is Degradation.all:
        raise MedQDMError(
            f"{study}: --degradation must be one preset, got all; run it once for each"
        )
    return None if degradation is None else degradation.value


def _evaluate_weights(
    data: Path, out: Path, degradation: Degradation | None, **options: Any
) -> None:
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


def _evaluate_thresholds(data: Path, out: Path, thresholds: str, **options: Any) -> None:
    from medqdm.evaluate import parse_thresholds, study_thresholds

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


def _evaluate_lesions(data: Path, out: Path, thresholds: str | None, **options: Any) -> None:
    from medqdm.evaluate import parse_thresholds, study_lesions
    from medqdm.evaluate.lesions_report import verdicts

    if thresholds is not None:
        options["thresholds"] = parse_thresholds(thresholds)
    found = study_lesions(
        data, out, track=lambda cases, total: progress(cases, total, "slices"), **options
    )
    for line in verdicts(found):
        console.print(line, soft_wrap=True, highlight=False)
    console.print(
        f"written to {out}: lesions.md, lesions.json, lesions.png, discs.png", soft_wrap=True
    )


def _evaluate_budget(data: Path, out: Path, **options: Any) -> None:
    from medqdm.evaluate import study_budget

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


def _evaluate_samplers(data: Path, out: Path, **options: Any) -> None:
    from medqdm.evaluate import compare_samplers

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
