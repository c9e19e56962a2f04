"""Opened: a weights file as an engine."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from medqdm import checkpoint
from medqdm.config import Task
from medqdm.engine import Engine
from medqdm.errors import MedQDMError


class Opened(NamedTuple):
    """A model as its weights file gives it.

    Args:
        engine: its networks, on the CPU, in evaluation mode.
        record: how it was trained.
        sha256: digest of the file.
    """

    engine: Engine
    record: dict[str, Any]
    sha256: str


def open_engine(weights: Path, overrides: Sequence[str]) -> Opened:
    """The engine of a QDM.

    Args:
        weights: a medqdm weights file.
        overrides: ``key=value`` settings of the task that the weights carry.

    Raises:
        MedQDMError: the weights or a setting do not fit.
    """
    loaded = checkpoint.load(weights)
    if loaded.qdm is None:
        raise MedQDMError(
            f"{weights}: must hold a whole model, got a KL-VAE alone; "
            "use the weights.safetensors of a finished run"
        )
    task = loaded.task_with(overrides)
    if loaded.spread is not None and task.diffusion.spread:
        _check_process(task, loaded.task)
    engine = Engine(task, loaded.autoencoder, loaded.qdm, loaded.regions, loaded.spread).eval()
    # the inputs of its convolutions are channels-last (Engine), so are their weights
    engine.autoencoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if engine.qdm.corrector is not None:
        engine.qdm.corrector.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Opened(engine, loaded.record, loaded.sha256)


def _check_process(task: Task, trained: Task) -> None:
    """Refuse the spread of another process: it knows the noise of each step by its number."""
    keys = {"num_steps", "kappa", "min_noise_level", "max_sqrt_eta", "power"}
    mine, theirs = (t.diffusion.model_dump(include=keys) for t in (task, trained))
    if mine != theirs:
        changed = ", ".join(f"{k} = {mine[k]}" for k in mine if mine[k] != theirs[k])
        raise MedQDMError(
            f"diffusion: must be the process that the weights' spread was trained for, got "
            f"{changed}; leave it out, or add diffusion.spread=false"
        )
