"""``python -m studies.benchmark``: how fast."""

from pathlib import Path
from typing import Annotated, Optional

import typer
from rich.table import Table

from medqdm.cli.options import BundledTask, Device, Overwrite, Set, Weights
from medqdm.cli.terminal import console, end_cleanly_on_sigterm, say
from studies.command import app_of, run


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
        typer.Option(
            "--slices", min=1, max=1024, help="Slices in a batch; default: 1, on a GPU 8."
        ),
    ] = None,
    repeats: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(
            min=1, max=1000, help="Timed runs of each variant; default: 5, or 2 if quick."
        ),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer timed runs.")] = False,
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
    from medqdm.io.whole import check_folder
    from studies import benchmark as bench

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


app = app_of(benchmark)

if __name__ == "__main__":
    run(app)
