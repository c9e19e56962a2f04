"""``medqdm evaluate`` and ``medqdm benchmark``: how good, how fast."""

from pathlib import Path
from typing import Annotated, Any, Optional

import typer
from rich.table import Table

from medqdm.cli.options import BundledTask, Data, Device, Overwrite, Set, Weights
from medqdm.cli.terminal import console, end_cleanly_on_sigterm, progress, say
from medqdm.errors import MedQDMError


def evaluate(  # noqa: PLR0913, PLR0917  (one option each)
    data: Data,
    out: Annotated[Path, typer.Option("--out", help="Output folder.")] = Path("evaluation"),
    task: BundledTask = None,
    weights: Weights = None,
    device: Device = "auto",
    seed: Annotated[int, typer.Option(min=0, help="Seed of noise and degradation.")] = 0,
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
    settings: Set = None,
    overwrite: Overwrite = False,
) -> None:
    """Measure a model on volumes (or a prepared set), beside bicubic and Lanczos."""
    from medqdm.evaluate import evaluate_weights

    end_cleanly_on_sigterm()
    if samplers or student:
        if roi is not None or use_lpips:
            raise MedQDMError(
                "--samplers: must go without --roi and --lpips, got one of them; leave it out"
            )
        _evaluate_samplers(
            data,
            out,
            samplers=samplers or ["default"],
            students=student or (),
            task=task,
            weights=weights,
            device=device,
            seed=seed,
            limit=limit,
            settings=settings or (),
            overwrite=overwrite,
        )
        return
    found = evaluate_weights(
        data,
        out,
        task=task,
        weights=weights,
        device=device,
        seed=seed,
        limit=limit,
        roi=roi,
        use_lpips=use_lpips,
        settings=settings or (),
        overwrite=overwrite,
        track=lambda pairs, total: progress(pairs, total, "slices"),
    )
    table = Table("", "medqdm", "bicubic", "lanczos", box=None)
    for metric, unit in (("psnr_db", "dB"), ("ssim", ""), ("mae_hu", "HU")):
        means = [found.mean(metric, method) for method in ("medqdm", "bicubic", "lanczos")]
        table.add_row(
            metric.partition("_")[0].upper(),
            *(f"{mean.mean:.4g} {unit}" if mean else "-" for mean in means),
        )
    console.print(table)
    console.print(f"written to {out}: results.md, results.json, pictures.png", soft_wrap=True)


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


def benchmark(  # noqa: PLR0913, PLR0917  (one option each)
    series: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Argument(help="A CT series as for enhance; default: a phantom with noise."),
    ] = None,
    task: BundledTask = None,
    weights: Weights = None,
    device: Device = "auto",
    json_file: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--json", metavar="FILE", help="Write everything as JSON."),
    ] = None,
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--out", help="Folder for results.md, results.json and benchmark.png."),
    ] = None,
    num_slices: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option("--slices", min=1, help="Slices in a batch; default: 1, on a GPU 8."),
    ] = None,
    repeats: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, help="Timed runs of each variant; default: 5, or 2 if quick."),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="The variants alone.")] = False,
    degrade: Annotated[
        bool, typer.Option("--degrade", help="The series is HR: degrade it as the test set is.")
    ] = False,
    random: Annotated[
        bool, typer.Option("--random", help="Random weights: any size of network, speed alone.")
    ] = False,
    paper_autoencoder: Annotated[
        bool,
        typer.Option(
            "--paper-autoencoder", help="Compare with the paper's KL-VAE (random weights)."
        ),
    ] = False,
    series_uid: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--series", help="SeriesInstanceUID (or its end) where there are several."),
    ] = None,
    settings: Set = None,
    overwrite: Overwrite = False,
) -> None:
    """Measure this machine: dense, windows, tokens, bf16 and fewer steps side by side."""
    from medqdm import benchmark as bench
    from medqdm.io.whole import check_folder

    end_cleanly_on_sigterm()
    if out is not None:
        check_folder(out, overwrite=overwrite, marker="results.json")
    subject = bench.open_subject(
        series,
        task=task,
        weights=weights,
        device=device,
        settings=settings or (),
        series_uid=series_uid,
        num_slices=num_slices,
        degraded=degrade,
        random=random,
    )
    found = bench.run_benchmark(
        subject,
        repeats=repeats,
        quick=quick,
        paper_autoencoder=paper_autoencoder,
        announce=say,
    )
    for line in bench.summary(found):
        console.print(line, soft_wrap=True, highlight=False)
    for table in bench.tables(found):
        console.print()
        console.print(table.title, style="bold", soft_wrap=True, highlight=False)
        shown = Table(box=None, padding=(0, 1, 0, 0))
        for k, name in enumerate(table.head):
            shown.add_column(name, justify="left" if k == 0 else "right", no_wrap=k == 0)
        for row in table.rows:
            shown.add_row(*row)
        console.print(shown)
    if json_file is not None:
        bench.write_json(found, json_file)
    if out is not None:
        bench.write_report(found, out, overwrite=overwrite)
        console.print(f"written to {out}: results.md, results.json, benchmark.png", soft_wrap=True)
