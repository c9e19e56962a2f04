"""The optimiser of both stages: AdamW with warm-up and, on request, a cosine."""

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

    falling = max(1, steps - settings.warmup_steps)

    def factor(step: int) -> float:
        warmup = min(1.0, (step + 1) / (settings.warmup_steps + 1))
        progress = min(1.0, max(0, step - settings.warmup_steps) / falling)
        fall = 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)) if settings.cosine else 1.0
        return warmup * fall

    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


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
