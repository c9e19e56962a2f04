"""A training run: stage one, stage two, export; the same command resumes it."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import yaml
from torch import nn

from medqdm import checkpoint
from medqdm.build import Autoencoder, build_autoencoder, build_qdm
from medqdm.config import Task, parse_task
from medqdm.data import SliceDataModule
from medqdm.engine import Engine
from medqdm.errors import MedQDMError
from medqdm.models.perceptual import PerceptualDistance, load_perceptual
from medqdm.models.transformer import QDM
from medqdm.training.autoencoder import AutoencoderModule
from medqdm.training.average import alone
from medqdm.training.diffusion import DiffusionModule
from medqdm.training.fit import fit
from medqdm.training.latents import measure_latent_scale, measure_residual_deviation
from medqdm.training.lightning import without_harmless_messages

WEIGHTS = "weights.safetensors"
AUTOENCODER_WEIGHTS = "autoencoder.safetensors"
START = "start.sha256"  # digest of the weights that a run began with
PROCESS = {
    "num_steps", "kappa", "min_noise_level", "max_sqrt_eta", "power", "published_masking",
}  # fmt: skip

log = logging.getLogger(__name__)


def train(
    task: Task,
    data: Path,
    out: Path,
    *,
    autoencoder: Path | None = None,
    start: Path | None = None,
) -> Path:
    """Train a task, or go on where an earlier call with the same folder stopped.

    Args:
        task: what to train.
        data: folder of volumes, one patient per sub-folder or file.
        out: run folder; a new one, or that of the same task to resume.
        autoencoder: medqdm weights whose KL-VAE is taken instead of training stage one.
        start: medqdm weights of a whole model that stage two goes on from, with its autoencoder;
            a corrector may be new.

    Returns:
        The exported weights, ``OUT/weights.safetensors``.

    Raises:
        MedQDMError: the data, the run folder or the autoencoder do not fit.
    """
    if start is not None and autoencoder is not None:
        raise MedQDMError(
            "--start: its weights bring an autoencoder, got --autoencoder too; give one of both"
        )
    if task.training.diffusion.corrector_alone and start is None:
        raise MedQDMError(
            "training.diffusion.corrector_alone: must go on from a model, got no --start; give "
            "one, or leave it out"
        )
    begun = None if start is None else _start_of(task, start)
    if autoencoder is not None:
        _check_autoencoder(task, checkpoint.load(autoencoder), autoencoder)
    _check_start(out, begun)
    open_run(task, out)
    if begun is not None:
        mark_start(out, begun)
    if (out / WEIGHTS).is_file():
        return ended(out)
    with without_harmless_messages():
        if not (out / AUTOENCODER_WEIGHTS).is_file():
            if given := autoencoder or start:
                adopt_autoencoder(task, given, out)
            else:
                _train_autoencoder(task, data, out)
        return _train_diffusion(task, data, out, begun)


def _start_of(task: Task, weights: Path) -> checkpoint.Checkpoint:
    """The model that a task's stage two goes on from."""
    start = checkpoint.load(weights)
    qdm_of(start, weights)
    for section, keys in (("transformer", None), ("diffusion", PROCESS)):
        mine, theirs = (getattr(t, section).model_dump(include=keys) for t in (task, start.task))
        if section == "transformer" and start.task.transformer.corrector is None:
            mine["corrector"] = None  # that may be new
        if mine != theirs:
            raise MedQDMError(
                f"{weights}: its {section} must have the task's settings, got {theirs}; take the "
                "task it was made for, or train without --start"
            )
    _check_autoencoder(task, start, weights)
    return start


def _check_start(out: Path, begun: checkpoint.Checkpoint | None) -> None:
    """Refuse to resume a run with a start that it did not have, or without the one it had."""
    if (out / "task.yaml").is_file() and (out / START).is_file() != (begun is not None):
        had = "with" if begun is None else "without"
        raise MedQDMError(
            f"{out}: a run can only be resumed as it began, {had} --start, got the other; choose "
            "another --out, or the same options"
        )


def mark_start(out: Path, start: checkpoint.Checkpoint) -> None:
    """Note in a run folder which weights it began with, or check that they are these.

    Raises:
        MedQDMError: the run began with others.
    """
    mark = out / START
    if mark.is_file() and mark.read_text(encoding="utf-8").strip() != start.sha256:
        raise MedQDMError(
            f"{out}: a run can only be resumed from its own weights, got others than those of its "
            f"{START}; choose another --out, or the weights it began with"
        )
    mark.write_text(start.sha256 + "\n", encoding="utf-8")


def qdm_of(start: checkpoint.Checkpoint, weights: Path) -> QDM:
    """The transformer of loaded weights.

    Raises:
        MedQDMError: they are of stage one alone.
    """
    if start.qdm is None:
        raise MedQDMError(
            f"{weights}: must hold a whole model, got a KL-VAE alone; "
            "use the weights.safetensors of a finished run"
        )
    return start.qdm


def ended(out: Path) -> Path:
    """The weights of a run that is finished."""
    log.info("%s: this run has ended; its weights stay as they are", out)
    return out / WEIGHTS


def open_run(task: Task, out: Path) -> None:
    """Create a run folder with ``task.yaml``, or check that it is a run of the same task.

    Raises:
        MedQDMError: the folder holds something else, or a run of another task.
    """
    settings = yaml.safe_dump(task.model_dump(mode="json"), sort_keys=False)
    file = out / "task.yaml"
    if file.is_file():
        # settings that are younger than the run have their defaults
        if parse_task(yaml.safe_load(file.read_text(encoding="utf-8")), where=str(file)) != task:
            raise MedQDMError(
                f"{out}: a run can only be resumed with its own task, got other settings than its "
                "task.yaml; choose another --out, or the settings of that file"
            )
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise MedQDMError(
            f"{out}: --out must be a new folder or a run to resume, got something else; "
            "choose another"
        )
    out.mkdir(parents=True, exist_ok=True)
    file.write_text(settings, encoding="utf-8")


def _train_autoencoder(task: Task, data: Path, out: Path) -> None:
    # each stage anew, so that its first weights do not depend on where an earlier call stopped
    pl.seed_everything(task.training.seed, workers=True, verbose=False)
    network = build_autoencoder(task)
    settings = task.training.autoencoder
    module = AutoencoderModule(task, network, _perceptual(settings.perceptual_weight))
    source = SliceDataModule(task, data, "autoencoder")
    record = fit(task, module, source, out / "autoencoder", settings.steps)
    scale = measure_latent_scale(network, source, task)
    task = _with_latent_scale(task, scale)
    export(task, network, None, {"autoencoder": record}, out / AUTOENCODER_WEIGHTS)


def _check_autoencoder(task: Task, loaded: checkpoint.Checkpoint, weights: Path) -> None:
    """Refuse an autoencoder of other settings, window or factor than a task's."""
    mine = task.autoencoder.model_copy(update={"latent_scale": None})
    theirs = loaded.task.autoencoder.model_copy(update={"latent_scale": None})
    # a light decoder is made for one factor
    upscale_fits = task.autoencoder.light is None or task.upscale == loaded.task.upscale
    if mine != theirs or task.hu_window != loaded.task.hu_window or not upscale_fits:
        raise MedQDMError(
            f"{weights}: its autoencoder must have the task's settings and window, got "
            f"x{loaded.task.upscale}, "
            f"{theirs} and window {loaded.task.hu_window}; train stage one anew"
        )


def adopt_autoencoder(task: Task, weights: Path, out: Path) -> None:
    """Take the autoencoder of other weights as a run's own.

    Args:
        task: of the run.
        weights: a medqdm weights file.
        out: run folder, for ``autoencoder.safetensors``.

    Raises:
        MedQDMError: the autoencoder is of other settings, window or factor.
    """
    loaded = checkpoint.load(weights)
    _check_autoencoder(task, loaded, weights)
    record = {"autoencoder": loaded.record.get("autoencoder", {})}
    task = _with_latent_scale(task, loaded.task.autoencoder.latent_scale or 1.0)
    task = task.model_copy(update={"rival": None})  # the autoencoder is not the rival's own
    export(task, loaded.autoencoder, None, record, out / AUTOENCODER_WEIGHTS)


def _train_diffusion(
    task: Task, data: Path, out: Path, begun: checkpoint.Checkpoint | None
) -> Path:
    if begun is not None and task.diffusion.residual_deviation is None:
        deviation = begun.task.diffusion.residual_deviation  # part of what its network means
        task = task.with_diffusion(residual_deviation=deviation)
    task, stage_one, source = begin_diffusion(task, data, out)
    network = stage_one.autoencoder
    engine = Engine(task, network, build_qdm(task))
    before: dict[str, Any] = {}
    if begun is not None:
        assert begun.qdm is not None  # see _start_of
        # a corrector that the start has not begins anew
        engine.qdm.load_state_dict({**engine.qdm.state_dict(), **begun.qdm.state_dict()})
        earlier = {k: v for k, v in alone(begun.record).items() if k != "autoencoder"}
        before = {"start_sha256": begun.sha256, "before": earlier}
    settings = task.training.diffusion
    module = DiffusionModule(task, engine, _perceptual(settings.perceptual_weight))
    record = {**fit(task, module, source, out / "diffusion", settings.steps), **before}
    export(task, network, engine.qdm, {**stage_one.record, "diffusion": record}, out / WEIGHTS)
    return out / WEIGHTS


def begin_diffusion(
    task: Task, data: Path, out: Path
) -> tuple[Task, checkpoint.Checkpoint, SliceDataModule]:
    """What stage two starts from: stage one, and what is measured on it; seeds all generators.

    Args:
        task: of the run.
        data: as for ``train``.
        out: run folder, with ``autoencoder.safetensors``.

    Returns:
        The task with the measured numbers, stage one, and the batches.
    """
    stage_one = checkpoint.load(out / AUTOENCODER_WEIGHTS)
    task = _with_latent_scale(task, stage_one.task.autoencoder.latent_scale or 1.0)
    source = SliceDataModule(task, data, "diffusion")
    task = _with_residual_deviation(task, stage_one.autoencoder, source)
    pl.seed_everything(task.training.seed, workers=True, verbose=False)
    return task, stage_one, source


def _perceptual(weight: float) -> PerceptualDistance | None:
    return load_perceptual() if weight > 0 else None


def _with_latent_scale(task: Task, scale: float | tuple[float, ...]) -> Task:
    section = task.autoencoder.model_copy(update={"latent_scale": scale})
    return task.model_copy(update={"autoencoder": section})


def _with_residual_deviation(task: Task, network: Autoencoder, source: SliceDataModule) -> Task:
    wanted = task.transformer.prediction == "preconditioned"
    if not wanted or task.diffusion.residual_deviation is not None:
        return task
    deviation = measure_residual_deviation(network, source, task)
    return task.with_diffusion(residual_deviation=deviation)


def export(
    task: Task,
    autoencoder: nn.Module,
    qdm: nn.Module | None,
    record: dict[str, Any],
    path: Path,
    *,
    regions: nn.Module | None = None,
    spread: nn.Module | None = None,
) -> None:
    """Write a run's weights, once for all of its processes.

    Args:
        task: with what was measured in training.
        autoencoder: of stage one.
        qdm: of stage two; None: stage one alone, stored in float32.
        record: how they were trained: any JSON.
        path: where to.
        regions: see ``Networks``, as for the next.
        spread: the same.
    """
    on_first_process(
        lambda: checkpoint.save(
            path,
            task=task,
            autoencoder_state=autoencoder.state_dict(),
            qdm_state=qdm.state_dict() if qdm is not None else None,
            record=record,
            # stage two goes on from the KL-VAE, the export is what users keep
            dtype="float32" if qdm is None else "float16",
            regions_state=regions.state_dict() if regions is not None else None,
            spread_state=spread.state_dict() if spread is not None else None,
        )
    )


def on_first_process(write: Callable[[], object]) -> None:
    """Do something once, while other processes of the run wait for it."""
    if pl.utilities.rank_zero_only.rank == 0:
        write()
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
