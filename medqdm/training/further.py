"""Further training: networks beside a whole model, which stays as it is."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytorch_lightning as pl

from medqdm import checkpoint
from medqdm.build import build_regions, build_spread
from medqdm.config import Task
from medqdm.data import SliceDataModule
from medqdm.data.samples import Stage
from medqdm.engine import Engine
from medqdm.models.transformer import QDM
from medqdm.training.fit import fit
from medqdm.training.lightning import without_harmless_messages
from medqdm.training.regions import RegionModule
from medqdm.training.run import (
    WEIGHTS,
    ended,
    export,
    mark_start,
    on_first_process,
    open_run,
    qdm_of,
)
from medqdm.training.spread import SpreadModule, measure_texture


def train_gain(weights: Path, data: Path, out: Path, settings: Sequence[str] = ()) -> Path:
    """Add networks to a trained model that tell what running a region brings, or go on with it.

    Args:
        weights: of the model, which stays as it is.
        data: as for ``train``.
        out: run folder; a new one, or that of the same task and model to resume.
        settings: ``key=value`` changes to the task that the weights carry.

    Returns:
        The model with the networks, ``OUT/weights.safetensors``.

    Raises:
        MedQDMError: the weights, the data or the run folder do not fit.
    """

    def begin(task: Task, start: checkpoint.Checkpoint, qdm: QDM) -> tuple[Engine, RegionModule]:
        # samplers that ask draw, so their networks must see draws
        drawing = task.with_diffusion(one_step="draw")
        engine = Engine(drawing, start.autoencoder, qdm, build_regions(task))
        return engine, RegionModule(task, engine)

    return _extend(weights, data, out, settings, stage="regions", begin=begin)


def train_spread(weights: Path, data: Path, out: Path, settings: Sequence[str] = ()) -> Path:
    """Add networks to a trained model that tell how far its estimates are off, or go on with it.

    Args:
        weights: of the model, which stays as it is.
        data: as for ``train``.
        out: run folder; a new one, or that of the same task and model to resume.
        settings: ``key=value`` changes to the task that the weights carry.

    Returns:
        The model with the networks, ``OUT/weights.safetensors``: its draws vary as much as it errs.

    Raises:
        MedQDMError: the weights, the data or the run folder do not fit.
    """

    def begin(task: Task, start: checkpoint.Checkpoint, qdm: QDM) -> tuple[Engine, SpreadModule]:
        engine = Engine(task, start.autoencoder, qdm, spread=build_spread(task))
        return engine, SpreadModule(task, engine)

    return _extend(weights, data, out, settings, stage="spread", begin=begin)


def _extend(
    weights: Path,
    data: Path,
    out: Path,
    settings: Sequence[str],
    *,
    stage: Stage,
    begin: Callable[[Task, checkpoint.Checkpoint, QDM], tuple[Engine, pl.LightningModule]],
) -> Path:
    """Train networks beside a model that stays as it is, and export all of them."""
    start = checkpoint.load(weights)
    task = start.task_with(settings)
    open_run(task, out)
    mark_start(out, start)
    if (out / WEIGHTS).is_file():
        return ended(out)
    pl.seed_everything(task.training.seed, workers=True, verbose=False)
    engine, module = begin(task, start, qdm_of(start, weights))
    steps = getattr(task.training, stage).steps
    with without_harmless_messages():
        fitted = fit(task, module, SliceDataModule(task, data, stage), out / stage, steps)
    record = {**start.record, stage: fitted}
    spread = engine.spread
    if spread is not None:
        source = SliceDataModule(task, data, stage)
        on_first_process(lambda: spread.filters.copy_(measure_texture(engine.eval(), source)))
    export(
        task, start.autoencoder, engine.qdm, record, out / WEIGHTS,
        regions=engine.regions or start.regions, spread=spread or start.spread,
    )  # fmt: skip
    return out / WEIGHTS
