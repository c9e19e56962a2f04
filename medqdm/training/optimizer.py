"""The optimiser of all training: AdamW with warm-up and, on request, a cosine."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from medqdm.config import TrainingSection
from medqdm.errors import MedQDMError


def make_optimizer(
    parameters: Iterable[nn.Parameter], learning_rate: float, steps: int, settings: TrainingSection
) -> dict[str, Any]:
    """What a LightningModule's ``configure_optimizers`` returns.

    Args:
        parameters: to train.
        learning_rate: after the warm-up.
        steps: of the whole stage, at whose end the cosine has fallen to 1 %.
        settings: warm-up, cosine and weight decay.
    """
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=settings.weight_decay)
    factor = RateFactor(steps, settings)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class RateFactor:
    """What the learning rate is multiplied with: a warm-up, then on request a cosine to 1 %.

    An object of plain numbers, which torch keeps in checkpoints.

    Args:
        steps: of the whole stage.
        settings: warm-up and cosine.

    Attributes:
        share: of the stage that is done, 0 to 1, where a clock decides; None: the steps do.
    """

    def __init__(self, steps: int, settings: TrainingSection) -> None:
        self.warmup_steps = settings.warmup_steps
        self.falling_steps = max(1, steps - settings.warmup_steps)
        self.cosine = settings.cosine
        self.share: float | None = None

    def __call__(self, step: int) -> float:
        """The factor after so many steps."""
        warmup = min(1.0, (step + 1) / (self.warmup_steps + 1))
        share = self.share
        if share is None:
            share = max(0, step - self.warmup_steps) / self.falling_steps
        fall = 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))
        return warmup * (fall if self.cosine else 1.0)


def check_finite(loss: Tensor, batch: dict[str, Any]) -> None:
    """Stop training at a loss that is not finite, naming the slices it came from.

    Raises:
        MedQDMError: the loss is NaN or infinite.
    """
    if not torch.isfinite(loss):
        slices = ", ".join(
            f"{patient}[{int(index)}]"
            for patient, index in zip(batch["patient"], batch["slice"], strict=True)
        )
        raise MedQDMError(
            f"training: the loss must be finite, got {loss.item()} for slices {slices}; "
            "look at these, or lower the learning rate"
        )
