"""``medqdm train`` and what follows it or prepares it."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from medqdm.cli.options import BundledTask, Data, Overwrite, RunFolder, Set, TaskName, Weights
from medqdm.cli.terminal import console, end_cleanly_on_sigterm


def train(
    task: TaskName,
    data: Data,
    out: RunFolder,
    autoencoder: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Weights whose KL-VAE is used instead of training stage one."),
    ] = None,
    start: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            help="Weights of a whole model that stage two goes on from; a corrector may be new."
        ),
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

    weights = run(chosen, data, out, autoencoder=autoencoder, start=start)
    console.print(f"weights: {weights}", soft_wrap=True)


def train_gain(
    data: Data,
    out: RunFolder,
    task: BundledTask = None,
    weights: Weights = None,
    settings: Set = None,
) -> None:
    """Add networks that tell which regions are worth a step. The same command resumes."""
    from medqdm.training.further import train_gain as run

    _go_on(run, weights, task, data, out, settings)


def train_spread(
    data: Data,
    out: RunFolder,
    task: BundledTask = None,
    weights: Weights = None,
    settings: Set = None,
) -> None:
    """Add networks that tell how far estimates are off, for draws. The same command resumes."""
    from medqdm.training.further import train_spread as run

    _go_on(run, weights, task, data, out, settings)


def _go_on(
    run: Callable[[Path, Path, Path, Sequence[str]], Path],
    weights: Path | None,
    task: str | None,
    data: Path,
    out: Path,
    settings: Sequence[str] | None,
) -> None:
    """Run what starts from a model, a task's bundled one where no weights are given."""
    from medqdm.loading import bundled_weights

    made = run(weights or bundled_weights(task or "sr4"), data, out, settings or ())
    console.print(f"weights: {made}", soft_wrap=True)


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

    end_cleanly_on_sigterm()
    count = write_set(load_task(task, settings or ()), data, out, overwrite=overwrite)
    console.print(f"{count} pairs written to {out}", soft_wrap=True)


def import_weights(
    out: Annotated[Path, typer.Option("-o", "--out", help="The medqdm weights file to write.")],
    task: TaskName,
    qdm: Annotated[Path, typer.Option(help="Published QDM checkpoint (.pth, .safetensors).")],
    autoencoder: Annotated[Path, typer.Option(help="Published KL-VAE checkpoint.")],
    settings: Set = None,
) -> None:
    """Turn published QDM and KL-VAE checkpoints into one medqdm weights file."""
    from medqdm import checkpoint, imported
    from medqdm.config import load_task

    found = imported.import_weights(
        qdm=qdm, autoencoder=autoencoder, task=load_task(task, settings or ())
    )
    assert found.autoencoder is not None  # both files were given
    checkpoint.save(
        out,
        task=found.task,
        autoencoder_state=found.autoencoder,
        qdm_state=found.qdm,
        record={"imported": {"qdm": qdm.name, "autoencoder": autoencoder.name}},
        dtype="float32",
    )
    console.print(f"weights: {out}", soft_wrap=True)


def _print_yaml(data: dict[str, Any]) -> None:
    import yaml

    console.print(yaml.safe_dump(data, sort_keys=False), end="", markup=False, highlight=False)
