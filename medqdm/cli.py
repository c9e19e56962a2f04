"""The command line: ``medqdm enhance``, ``train``, ``evaluate`` and their companions."""

import logging
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Optional

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from medqdm.errors import MedQDMError

app = typer.Typer(
    help="CT super-resolution with quadtree diffusion models. Research use only: "
    "not a medical device.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
console = Console()
messages = Console(stderr=True)


class Format(StrEnum):
    """Output formats."""

    dicom = "dicom"
    nifti = "nifti"
    nrrd = "nrrd"
    mha = "mha"


class Sampler(StrEnum):
    """In which regions the downstream runs at which steps."""

    uniform = "uniform"
    tss = "tss"
    gain = "gain"
    groups = "groups"
    random = "random"
    upstream = "upstream"


class Syntax(StrEnum):
    """How DICOM pixels are stored, all of them without loss."""

    explicit = "explicit"
    jpeg_ls = "jpeg-ls"
    jpeg2000 = "jpeg2000"
    htj2k = "htj2k"
    rle = "rle"


class Dates(StrEnum):
    """Dates of a new DICOM series."""

    now = "now"
    source = "source"


class Precision(StrEnum):
    """Precisions of the networks."""

    auto = "auto"
    fp32 = "fp32"
    bf16 = "bf16"


Set = Annotated[
    Optional[list[str]],  # noqa: UP045  (typer reads this form)
    typer.Option("--set", metavar="KEY=VALUE", help="Change a setting of the task; repeatable."),
]
TaskName = Annotated[
    str, typer.Option("--task", help="Name of a task (see 'medqdm tasks'), or a YAML file.")
]
BundledTask = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--task", help="Task of the bundled weights; default: sr4."),
]
RunFolder = Annotated[Path, typer.Option("--out", help="Run folder; an existing run is resumed.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Data = Annotated[
    Path, typer.Option("--data", help="Folder of volumes: one patient per sub-folder or file.")
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace an output folder that has files in it.")
]
Weights = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option("--weights", help="A medqdm weights file; default: the task's bundled one."),
]


@app.callback()
def setup(
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Show debug messages.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Show warnings only.")] = False,
) -> None:
    """Set up logging for all commands."""
    level = logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO
    handler = RichHandler(console=messages, show_path=False, show_time=False)
    logging.basicConfig(level=logging.WARNING, handlers=[handler], format="%(message)s")
    logging.getLogger("medqdm").setLevel(level)
    console.quiet = quiet


@app.command()
def enhance(  # noqa: PLR0913, PLR0917  (one option each)
    series: Annotated[Path, typer.Argument(help="DICOM folder, or a NIfTI, NRRD or MHA file.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Output folder.")],
    task: BundledTask = None,
    weights: Weights = None,
    device: Device = "auto",
    seed: Annotated[int, typer.Option(min=0, help="Seed of the noise.")] = 0,
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
    settings: Set = None,
    precision: Annotated[
        Precision, typer.Option(help="auto: bf16 where it is fast and changes at most 2 HU.")
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
        typer.Option(min=1, help="Sampling steps; default: the task's, all with --sampler."),
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
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue an interrupted run; keep one that is.")
    ] = False,
    overwrite: Overwrite = False,
) -> None:
    """Enhance a CT series in plane and write a new one; the input is never touched.

    Of a folder with several series, each is enhanced into a folder of its own.
    """
    from medqdm.batch import find_many
    from medqdm.enhance import enhance_series, load_enhancer

    _end_cleanly_on_sigterm()
    model: dict[str, Any] = {
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
    output: dict[str, Any] = {
        "file_format": file_format.value,
        "transfer_syntax": transfer_syntax.value,
        "dates": dates.value,
        "resume": resume,
        "overwrite": overwrite,
        "skip_bad": skip_bad,
        "announce": _announce,
        "track": lambda done, total: _progress(done, total, "slices"),
    }
    many = [] if series_uid else find_many(series)
    if len(many) > 1:
        if slice_axis is not None:
            raise MedQDMError(
                f"{series}: --slice-axis must go with one file, got {len(many)} series; "
                "give the files one by one"
            )
        _enhance_many(series, out, many, lambda: load_enhancer(**model), output)
        return
    summary = enhance_series(
        series, out, series_uid=series_uid, slice_axis=slice_axis, **model, **output
    )
    if summary.finished is not None:
        console.print("finished before, nothing to do")
    if summary.redone:
        _warn(summary.warnings[-1])
    numbers = summary.numbers()
    console.print(
        f"{numbers['slices']} slices, {numbers['seconds_per_slice']:.2f} s a slice, "
        f"{100 * numbers['share_refined']:.1f} % refined, "
        f"mean shift {numbers['mean_shift_hu']:+.2f} HU, "
        f"LR consistency {numbers['lr_consistency_hu']:.1f} HU rms, "
        f"{numbers['clipped_voxels']} voxels clipped",
        soft_wrap=True,
    )
    console.print(f"written to {out} (comparison.png shows the middle slice)", soft_wrap=True)


def _enhance_many(
    root: Path,
    out: Path,
    found: Sequence[Any],
    load: Callable[[], Any],
    output: dict[str, Any],
) -> None:
    """All series of a folder; exit code 3 if one was refused or failed."""
    from collections import Counter

    from medqdm.batch import DONE, SUMMARY_FILE, enhance_all
    from medqdm.enhance import check_output

    check_output(root, out, overwrite=output["overwrite"] or output["resume"], marker=SUMMARY_FILE)
    console.print(f"{len(found)} series, each to a folder of its own", highlight=False)

    def report(row: Any) -> None:
        what = row.output if row.status in DONE else row.message
        console.print(f"  {row.status}: {what}", soft_wrap=True, highlight=False, markup=False)

    rows = enhance_all(load(), root, out, found=found, report=report, **output)
    counts = Counter(row.status for row in rows)
    counted = ", ".join(f"{number} {status}" for status, number in counts.items())
    console.print(f"{counted}; written to {out}, {SUMMARY_FILE} lists them", soft_wrap=True)
    failures = [row for row in rows if row.is_failure]
    for row in failures:
        text = f"{row.status}: series {row.series}: {row.message}"
        messages.print(text, style="red", soft_wrap=True, highlight=False, markup=False)
    if failures:
        raise typer.Exit(3)


@app.command()
def train(
    task: TaskName,
    data: Data,
    out: RunFolder,
    autoencoder: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Weights whose KL-VAE is used instead of training stage one."),
    ] = None,
    settings: Set = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the whole task.")] = False,
) -> None:
    """Train a task: KL-VAE, then QDM, then export. The same command resumes."""
    from medqdm.config import load_task

    chosen = load_task(task, settings or ())
    if dry_run:
        _print_yaml(chosen.model_dump(mode="json"))
        return
    from medqdm.training.run import train as run

    weights = run(chosen, data, out, autoencoder=autoencoder)
    console.print(f"weights: {weights}", soft_wrap=True)


@app.command()
def distill(
    data: Data,
    out: RunFolder,
    task: BundledTask = None,
    weights: Weights = None,
    settings: Set = None,
) -> None:
    """Train a student of a model for 1 to 4 steps. The same command resumes."""
    from medqdm.enhance import bundled_weights
    from medqdm.training.run import distill as run

    student = run(weights or bundled_weights(task or "sr4"), data, out, settings or ())
    console.print(f"weights: {student}", soft_wrap=True)


@app.command("train-gain")
def train_gain(
    data: Data,
    out: RunFolder,
    task: BundledTask = None,
    weights: Weights = None,
    settings: Set = None,
) -> None:
    """Add networks that tell which regions are worth a step. The same command resumes."""
    from medqdm.enhance import bundled_weights
    from medqdm.training.run import train_gain as run

    grown = run(weights or bundled_weights(task or "sr4"), data, out, settings or ())
    console.print(f"weights: {grown}", soft_wrap=True)


@app.command()
def prepare(
    task: TaskName,
    data: Data,
    out: Annotated[Path, typer.Option("--out", help="Output folder.")],
    settings: Set = None,
    overwrite: Overwrite = False,
) -> None:
    """Write a fixed Med-SR set: LR and HR slices and a manifest with the seeds."""
    from medqdm.config import load_task
    from medqdm.data import prepare as write_set

    _end_cleanly_on_sigterm()
    count = write_set(load_task(task, settings or ()), data, out, overwrite=overwrite)
    console.print(f"{count} pairs written to {out}", soft_wrap=True)


@app.command()
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

    _end_cleanly_on_sigterm()
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
        track=lambda pairs, total: _progress(pairs, total, "slices"),
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
        announce=_say,
        track=lambda blocks, total: _progress(blocks, total, "patients"),
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


@app.command()
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

    _end_cleanly_on_sigterm()
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
        announce=_say,
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


@app.command()
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
        console.print_json(json.dumps(asdict(inventory), default=str))
        return
    for found in inventory.series:
        _show_series(found)
    for reason, count in sorted(inventory.skipped.items()):
        _show(f"skipped {count} file(s): {reason}")
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


@app.command()
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

    _end_cleanly_on_sigterm()
    loaded = load_review(out, source, series=series_uid, slice_axis=slice_axis)
    with Viewer(loaded, ratings, port=port) as viewer:
        print(viewer.url, flush=True)  # noqa: T201  (whole, however narrow the terminal is)
        _say("Ctrl+C ends the review")
        if not no_browser:
            webbrowser.open(viewer.url)
        try:
            viewer.wait()
        except KeyboardInterrupt:
            _say("ended")


@app.command()
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


@app.command("import-weights")
def import_weights(
    out: Annotated[Path, typer.Option("-o", "--out", help="The medqdm weights file to write.")],
    task: TaskName,
    qdm: Annotated[Path, typer.Option(help="Published QDM checkpoint (.pth, .safetensors).")],
    autoencoder: Annotated[Path, typer.Option(help="Published KL-VAE checkpoint.")],
    settings: Set = None,
) -> None:
    """Turn published QDM and KL-VAE checkpoints into one medqdm weights file."""
    from medqdm import checkpoint
    from medqdm.config import load_task

    imported = checkpoint.import_weights(
        qdm=qdm, autoencoder=autoencoder, task=load_task(task, settings or ())
    )
    assert imported.autoencoder is not None  # both files were given
    checkpoint.save(
        out,
        task=imported.task,
        autoencoder_state=imported.autoencoder,
        qdm_state=imported.qdm,
        record={"imported": {"qdm": qdm.name, "autoencoder": autoencoder.name}},
        dtype="float32",
    )
    console.print(f"weights: {out}", soft_wrap=True)


def _end_cleanly_on_sigterm() -> None:
    """Let SIGTERM unwind the stack as Ctrl+C does, so that half an output is cleared away."""
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))


def _announce(enhancer: Any, volume: Any) -> None:
    """One line saying what was found (nothing of the patient), and the warnings."""
    slices, height, width = volume.shape
    task = enhancer.task
    seconds = enhancer.estimate_seconds(volume)
    console.print(
        f"{volume.source.kind} series: {slices} slices of {width} x {height}, "
        f"{volume.spacing_mm[1]:.3g} mm pixels -> x{task.upscale} ({task.name}), "
        f"s = {task.quadtree.threshold:g} ({task.threshold_hu:g} HU), on {enhancer.device}, "
        f"about {_duration(seconds)} in {enhancer.precision}",
        soft_wrap=True,
        highlight=False,
    )
    for warning in enhancer.warnings(volume):
        _warn(warning)


def _warn(text: str) -> None:
    messages.print(f"[yellow]warning:[/] {escape(text)}", soft_wrap=True, highlight=False)


def _say(text: str) -> None:
    """A line on what is done next, for whoever watches."""
    if messages.is_terminal and not console.quiet:
        messages.print(text, style="dim", highlight=False)


def _progress(items: Iterable[Any], total: int, unit: str) -> Iterator[Any]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=console.quiet) as progress:
        yield from progress.track(items, total=total, description="")


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _print_yaml(data: dict[str, Any]) -> None:
    import yaml

    console.print(yaml.safe_dump(data, sort_keys=False), end="", markup=False, highlight=False)


def main() -> None:
    """Run the command line; a user's mistake ends in one line and exit code 2."""
    try:
        app()
    except MedQDMError as error:
        messages.print(f"[red]medqdm:[/] {escape(str(error))}", soft_wrap=True, highlight=False)
        raise SystemExit(2) from None
