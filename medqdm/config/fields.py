"""Fields: what all sections are made of."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, NonNegativeFloat


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


Probability = Annotated[float, Field(ge=0, le=1)]
Percent = Annotated[int, Field(ge=0, le=100)]
Odd = Annotated[int, Field(gt=0), AfterValidator(require_odd)]
Range = Annotated[tuple[NonNegativeFloat, NonNegativeFloat], AfterValidator(require_rising)]
Precision = Literal["auto", "fp32", "bf16"]


class Section(BaseModel):
    """A frozen group of settings; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
