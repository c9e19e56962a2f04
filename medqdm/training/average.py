"""Average: the weights between two models, one of which went on from the other.

Between a model and what further training on other data made of it there often lies one that keeps
what both can do (weight-space ensembles, arXiv:2109.01903).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from medqdm import checkpoint
from medqdm.errors import MedQDMError


def average(first: Path, second: Path, share: float, out: Path) -> None:
    """Write the model at ``(1 - share) * first + share * second``.

    Args:
        first: weights of a whole model.
        second: weights of one that was trained on from it; its task is taken.
        share: of the second, 0 to 1.
        out: the weights file to write; networks for regions and for the
            spread of draws are left out, as they know one model.

    Raises:
        MedQDMError: the share is out of range, or the networks do not match.
    """
    if not 0 <= share <= 1:
        raise MedQDMError(f"average: the share must be 0 to 1, got {share:g}")
    a, b = checkpoint.load(first), checkpoint.load(second)
    if a.qdm is None or b.qdm is None or a.task.transformer != b.task.transformer:
        raise MedQDMError(
            f"{second}: must be a whole model with the transformer of {first}, got another; "
            "average a model and one that went on from it"
        )
    checkpoint.save(
        out,
        task=b.task,
        autoencoder_state=_between(a.autoencoder.state_dict(), b.autoencoder.state_dict(), share),
        qdm_state=_between(a.qdm.state_dict(), b.qdm.state_dict(), share),
        record={**alone(b.record), "average": {"of_sha256": [a.sha256, b.sha256], "share": share}},
        dtype="float16",
    )


def alone(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record of a model without that of networks beside it."""
    return {k: v for k, v in record.items() if k not in {"regions", "spread"}}


def _between(a: Mapping[str, Tensor], b: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    return {name: (1 - share) * value + share * b[name] for name, value in a.items()}
