"""Fit: one stage with Lightning, from its last checkpoint on, and the record of it."""

import platform
import signal
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import (
    LearningRateMonitor,
    ModelCheckpoint,
    RichProgressBar,
    WeightAveraging,
)
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from torch import Tensor

from medqdm.config import Task, TrainingSection
from medqdm.data import SliceDataModule
from medqdm.device import is_bf16_fast
from medqdm.training.clock import Clock, ClockBar
from medqdm.training.lightning import StepSeed
from medqdm.version import __version__


class Average:
    """One step of a moving average of weights, over the last tenth of a run while it is short.

    After n steps the average keeps ``min(decay, (1 + n) / (10 + n))`` of itself: with the decay
    alone, a run of few hundred steps would end with weights of its beginning.

    Args:
        decay: of long runs.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay

    def __call__(self, average: Tensor, now: Tensor, steps: Tensor) -> Tensor:
        """The new average; what is counted, not weighed, is as it is now."""
        if not average.is_floating_point():
            return now
        kept = torch.clamp((1 + steps) / (10 + steps), max=self.decay)
        return torch.lerp(now, average, kept.to(average.dtype))


def fit(
    task: Task, module: pl.LightningModule, source: SliceDataModule, folder: Path, steps: int
) -> dict[str, Any]:
    """Fit one stage from its last checkpoint, if it has one; the module ends with EMA weights.

    Args:
        task: its ``training`` section says how.
        module: what to train.
        source: the batches.
        folder: of the stage, for checkpoints, logs and the curve.
        steps: optimiser steps, where the task gives no minutes.

    Returns:
        The record of the stage: any JSON.
    """
    settings = task.training
    last = folder / "checkpoints" / "last.ckpt"
    averaging = WeightAveraging(avg_fn=Average(settings.ema_decay))
    clock = Clock(settings.minutes, folder / "curve.csv")
    trainer = pl.Trainer(
        max_steps=steps if settings.minutes is None else -1,
        max_epochs=-1,
        accelerator=settings.accelerator,
        devices=settings.devices,
        strategy=_strategy(settings, module),
        precision=_lightning_precision(task),
        accumulate_grad_batches=settings.accumulate,
        gradient_clip_val=settings.gradient_clip or None,
        val_check_interval=settings.validate_every * settings.accumulate,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        log_every_n_steps=min(10, settings.validate_every),
        enable_model_summary=False,
        default_root_dir=folder,
        use_distributed_sampler=False,
        logger=[
            TensorBoardLogger(folder, name="tensorboard"),
            CSVLogger(folder, name="csv"),
        ],
        callbacks=[
            averaging,
            clock,
            StepSeed(settings.seed),
            ModelCheckpoint(
                dirpath=last.parent,
                every_n_train_steps=settings.checkpoint_every,
                save_last=True,
                save_top_k=1,
                enable_version_counter=False,
            ),
            LearningRateMonitor("step"),
            RichProgressBar() if settings.minutes is None else ClockBar(clock),
        ],
    )
    if steps > 0 or settings.minutes is not None:
        _fit_or_interrupt(trainer, module, source, last)
        # a run that was stopped after its last step is only loaded, and then not averaged
        averaging.on_train_end(trainer, module)
        trainer.save_checkpoint(last)
    return {
        "steps": trainer.global_step,
        "seconds": round(clock.seconds, 1),
        "parameters": sum(p.numel() for p in module.parameters() if p.requires_grad),
        "batch_size": source.batch_size,
        "seed": settings.seed,
        "precision": str(trainer.precision),
        "medqdm": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        **source.record(),
        "validation": {
            key.removeprefix("validation/"): round(float(value), 5)
            for key, value in trainer.callback_metrics.items()
            if key.startswith("validation/")
        },
        "curve": clock.rows,
    }


def _fit_or_interrupt(
    trainer: pl.Trainer, module: pl.LightningModule, source: SliceDataModule, last: Path
) -> None:
    try:
        trainer.fit(module, source, ckpt_path=last if last.is_file() else None, weights_only=True)
    except SystemExit:
        if not trainer.interrupted:
            raise
        # Lightning ends the program at Ctrl+C and leaves it deaf to the next; notebooks live on
        signal.signal(signal.SIGINT, signal.default_int_handler)
        raise KeyboardInterrupt from None


def _strategy(settings: TrainingSection, module: pl.LightningModule) -> Any:
    if settings.strategy != "ddp":
        return settings.strategy
    on_gpu = settings.accelerator != "cpu" and torch.cuda.is_available()
    return pl.strategies.DDPStrategy(
        process_group_backend="nccl" if on_gpu else "gloo",
        # until the adversarial term begins, the discriminator gets no gradient
        find_unused_parameters=getattr(module, "discriminator", None) is not None,
    )


def _lightning_precision(task: Task) -> str:
    settings = task.training
    on_gpu = settings.accelerator != "cpu" and torch.cuda.is_available()
    fast = is_bf16_fast(torch.device("cuda" if on_gpu else "cpu"))
    bf16 = settings.precision == "bf16" or (settings.precision == "auto" and fast)
    return "bf16-mixed" if bf16 else "32-true"
