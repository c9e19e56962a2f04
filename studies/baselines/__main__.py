"""``python -m studies.baselines``: other networks, trained on the same data and compared."""

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from medqdm.cli.evaluate import measure_and_show
from medqdm.cli.options import (
    LARGEST_SEED,
    BundledTask,
    Data,
    Degradation,
    Device,
    Overwrite,
    RunFolder,
    Set,
    TaskName,
    Weights,
)
from medqdm.cli.terminal import console, end_cleanly_on_sigterm
from studies.command import app_of, run

if TYPE_CHECKING:
    from medqdm.config import Task
    from medqdm.evaluate import Model


class Rival(StrEnum):
    """Networks to compare with."""

    edsr = "edsr"
    resshift = "resshift"


def train(
    network: Annotated[Rival, typer.Argument(help="A regression CNN, or a U-Net that diffuses.")],
    task: TaskName,
    data: Data,
    out: RunFolder,
    autoencoder: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="For resshift: weights whose autoencoder it takes."),
    ] = None,
    minutes: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(min=0.01, help="Minutes of training, validation apart; default: steps."),
    ] = None,
    settings: Set = None,
) -> None:
    """Train another network on a task's data, to compare with. The same command resumes."""
    from studies.baselines import rival_task, train_rival

    budget = [] if minutes is None else [f"training.minutes={minutes}"]
    chosen = rival_task(network.value, task, [*(settings or ()), *budget])
    weights = train_rival(chosen, data, out, autoencoder=autoencoder)
    console.print(f"weights: {weights}", soft_wrap=True)


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
    """Measure a model as ``medqdm evaluate`` does, beside other weights."""
    from studies.baselines.against import describe_against, open_against

    def others(model: "Task") -> tuple[Sequence["Model"], dict[str, str]]:
        methods = open_against(against or (), model, device=device, seed=seed)
        return methods, describe_against(methods)

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
        others=others,
        settings=settings or (),
        overwrite=overwrite,
    )


app = app_of(train, evaluate)

if __name__ == "__main__":
    run(app)
