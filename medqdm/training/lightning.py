"""What Lightning is asked to do otherwise: noise that resumes, silence where all is well."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch

_HARMLESS_WARNINGS = (
    ".*isinstance.treespec, LeafSpec.. is deprecated",  # Lightning 2.6 on torch 2.13
    ".*in eval mode at the start of training",  # the frozen KL-VAE and LPIPS, on purpose
    "Checkpoint directory .* exists and is not empty",  # a run that is resumed
    "The dirpath has changed",  # and one whose folder was moved
    ".*does not have many workers",  # the few validation slices lie ready in memory
)
_HARMLESS_LINES = (
    "Tip: For seamless cloud",  # advertising
    "`weights_only` was not set",  # our checkpoints hold the optimiser too
)
_LINE_LOGGERS = (
    "pytorch_lightning.utilities.rank_zero",
    "pytorch_lightning.trainer.connectors.checkpoint_connector",
)


class StepSeed(pl.Callback):
    """Makes a step's random numbers a function of seed, step and process alone.

    So a resumed run equals one that was never stopped, and processes do not draw alike.

    Args:
        seed: of the run.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,  # noqa: ARG002  (Lightning's signature)
        batch: Any,  # noqa: ARG002
        batch_idx: int,
    ) -> None:
        """Seed torch, whose generators draw what a training step needs."""
        state = np.random.SeedSequence((self.seed, batch_idx, trainer.global_rank))
        torch.manual_seed(int(state.generate_state(1)[0]))


@contextmanager
def without_harmless_messages() -> Iterator[None]:
    """Keep back the messages of Lightning that nobody has to act on."""

    def keep(record: logging.LogRecord) -> bool:
        text = record.getMessage()
        return not any(line in text for line in _HARMLESS_LINES)

    loggers = [logging.getLogger(name) for name in _LINE_LOGGERS]
    with warnings.catch_warnings():
        for message in _HARMLESS_WARNINGS:
            warnings.filterwarnings("ignore", message)
        for logger in loggers:
            logger.addFilter(keep)
        try:
            yield
        finally:
            for logger in loggers:
                logger.removeFilter(keep)
