"""Fields: what all sections are made of."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field


def require_odd(value: int) -> int:
    """The number, if it is odd.

    Raises:
        ValueError: it is even.
    """
    if value % 2 == 0:
        raise ValueError("must be odd")
    return value


def require_rising(value: tuple[Any, Any]) -> tuple[Any, Any]:
    """The pair, if its first number is not above its second.

    Raises:
        ValueError: it is.
    """
    if value[0] > value[1]:
        raise ValueError("the first number must not be above the second")
    return value


# Upper bounds are several times what anyone uses; beyond, a build would hang or fill the memory.
Probability = Annotated[float, Field(ge=0, le=1)]
Percent = Annotated[int, Field(ge=0, le=100)]
Odd = Annotated[int, Field(gt=0, le=255), AfterValidator(require_odd)]
Positive = Annotated[float, Field(gt=0, le=1e9)]
NonNegative = Annotated[float, Field(ge=0, le=1e9)]
Range = Annotated[tuple[NonNegative, NonNegative], AfterValidator(require_rising)]
Precision = Literal["auto", "fp32", "bf16"]
Text = Annotated[str, Field(max_length=1000)]

Pixels = Annotated[int, Field(gt=0, le=8192)]
"""Side of a slice or crop."""
Channels = Annotated[int, Field(gt=0, le=8192)]
"""Width of a layer."""
Blocks = Annotated[int, Field(gt=0, le=256)]
"""Residual blocks, one after the other."""
BlocksEach = Annotated[int, Field(gt=0, le=16)]
"""Residual blocks at each of several resolutions."""
Layers = Annotated[int, Field(gt=0, le=64)]
"""Transformer layers."""
Steps = Annotated[int, Field(gt=0, le=10_000)]
"""Steps of the diffusion."""
Updates = Annotated[int, Field(ge=0, le=10**9)]
"""Steps of an optimiser."""
Batch = Annotated[int, Field(gt=0, le=8192)]
"""Samples at once."""
Often = Annotated[int, Field(gt=0, le=10**9)]
"""Optimiser steps from one time to the next."""


class Section(BaseModel):
    """A frozen group of settings; unknown keys, infinity and NaN are refused."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )
