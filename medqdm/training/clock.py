"""The clock of a training run: seconds through stops and resumes, a budget of them, the curve."""

import csv
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import RichProgressBar

from medqdm.io.whole import whole_file
from medqdm.training.optimizer import RateFactor

Row = dict[str, float]


class Clock(pl.Callback):
    """Counts the seconds of training, validation apart, and keeps the validations as a curve.

    The seconds are part of the checkpoints: a resumed run goes on from those at its checkpoint.

    Args:
        minutes: budget, at whose end training stops and which the learning rate follows; None: the
            trainer's steps decide.
        curve: CSV file, written anew after each validation, and read by a resumed run.

    Attributes:
        seconds: of training so far.
        rows: one for each validation: seconds, step, mean training loss since the one before, and
            what was validated.
    """

    def __init__(self, minutes: float | None, curve: Path) -> None:
        self._budget = None if minutes is None else 60 * minutes
        self._curve = curve
        self._before = 0.0  # seconds until the clock was started last
        self._started: float | None = None
        self._loss_sum, self._losses = 0.0, 0
        self.rows: list[Row] = []

    @property
    def seconds(self) -> float:
        """Of training so far."""
        running = 0.0 if self._started is None else time.monotonic() - self._started
        return self._before + running

    @property
    def share(self) -> float:
        """Of the budget that is spent; 0 without one."""
        return 0.0 if self._budget is None else self.seconds / self._budget

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"seconds": self.seconds, "loss": [self._loss_sum, self._losses]}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        self._before = state_dict["seconds"]
        self._loss_sum, self._losses = state_dict["loss"]

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002  (Lightning's signature)
        """Find the curve so far, and do nothing more if the budget is spent."""
        self.rows = self._read()
        self._stop_if_spent(trainer)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Begin to count; what lies behind the checkpoint comes anew."""
        self.rows = [row for row in self.rows if row["step"] <= trainer.global_step]
        if self.rows and self.rows[-1]["step"] == trainer.global_step:
            self._loss_sum, self._losses = 0.0, 0  # the checkpoint is older than the row
        self._started = time.monotonic()

    def on_train_batch_start(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,  # noqa: ARG002
        batch: Any,  # noqa: ARG002
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        """Tell the learning rate how much of the budget is spent."""
        if self._budget is None:
            return
        # one clock for all processes: their learning rates must not differ
        spent = trainer.strategy.broadcast(self.share)
        for config in trainer.lr_scheduler_configs:
            for factor in config.scheduler.lr_lambdas:
                assert isinstance(factor, RateFactor)
                factor.share = spent

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,  # noqa: ARG002
        outputs: Any,
        batch: Any,  # noqa: ARG002
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        """Count the loss, and stop at the end of the budget."""
        self._loss_sum += float(outputs["loss"]) * trainer.accumulate_grad_batches
        self._losses += 1
        self._stop_if_spent(trainer)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Pause."""
        self._pause()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Note what was found, and go on."""
        row = {"seconds": round(self.seconds, 1), "step": trainer.global_step}
        if self._losses:
            row["loss"] = round(self._loss_sum / self._losses, 6)
        for key, value in trainer.callback_metrics.items():
            if key.startswith("validation/"):
                row[key.removeprefix("validation/")] = round(float(value), 5)
        self.rows.append(row)
        self._loss_sum, self._losses = 0.0, 0
        if trainer.is_global_zero:
            self._write()
        self._started = time.monotonic()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Stop counting."""
        self._pause()

    def _pause(self) -> None:
        self._before, self._started = self.seconds, None

    def _stop_if_spent(self, trainer: pl.Trainer) -> None:
        if self._budget is not None and trainer.strategy.broadcast(self.share) >= 1:
            trainer.should_stop = True

    def _read(self) -> list[Row]:
        if not self._curve.is_file():
            return []
        with self._curve.open(encoding="utf-8", newline="") as file:
            return [
                {name: float(value) for name, value in row.items() if value}
                for row in csv.DictReader(file)
            ]

    def _write(self) -> None:
        names = list(dict.fromkeys(name for row in self.rows for name in row))
        with (
            whole_file(self._curve, overwrite=True) as draft,
            draft.open("w", encoding="utf-8", newline="") as file,
        ):
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(self.rows)


class ClockBar(RichProgressBar):
    """A progress bar that expects as many steps as the clock's budget will hold.

    Args:
        clock: with a budget.
    """

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Show the step, of as many as there will be at this pace."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if self.progress is not None and self.train_progress_bar_id is not None:
            total = (batch_idx + 1) / min(1.0, self._clock.share)
            self.progress.update(self.train_progress_bar_id, total=round(total))
