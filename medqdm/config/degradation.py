"""Degradation settings and their presets."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from medqdm.config.fields import Odd, Percent, Probability, Range, Section, require_rising

Scale = Annotated[float, Field(ge=0, le=8)]


class DegradationSection(Section):
    """Real-ESRGAN's first degradation stage for one channel; the defaults are ``paper-train``.

    Noise is on the scale of [0, 1] = the whole window.
    """

    true_kernel_sizes: Annotated[tuple[Odd, ...], Field(max_length=100)] = (3, 5, 7, 9, 11)
    """Sides of the drawn blur kernels in HR pixels; empty means no blur. (The reference stores
    them in 13 x 13 zeros, which changes nothing.)"""
    sinc_probability: Probability = 0.1
    """Share of circular low-pass kernels, cut-off in [pi/3, pi]."""
    isotropic_probability: Probability = 0.6
    """Share of isotropic ones among the Gaussian kernels; the rest is anisotropic."""
    blur_sigma_px: Range = (0.2, 3.0)
    """Standard deviation of the Gaussian kernels in HR pixels."""
    resize_probabilities: tuple[Probability, Probability, Probability] = (0.2, 0.7, 0.1)
    """Up, down, keep."""
    resize_range: Annotated[tuple[Scale, Scale], AfterValidator(require_rising)] = (0.5, 1.5)
    """Smallest and largest scale of the random resize."""
    resize_modes: Annotated[
        tuple[Literal["area", "bilinear", "bicubic"], ...], Field(max_length=100)
    ] = ("area", "bilinear", "bicubic")
    """Modes of both resizes, drawn per sample."""
    gaussian_probability: Probability = 0.4
    """Share of Gaussian noise; the rest gets Poisson noise."""
    gaussian_sigma: Range = (1 / 255, 15 / 255)
    """Standard deviation of the Gaussian noise."""
    poisson_scale: Range = (0.05, 3.0)
    """Strength of the Poisson noise; (0, 0) turns it off."""
    jpeg_quality: Annotated[tuple[Percent, Percent], AfterValidator(require_rising)] = (70, 95)
    """Range of the JPEG quality; (0, 0) turns JPEG off."""
    round_to_8_bit: bool = True
    """Clamp to [0, 1] and round to 1/255 at the end, as the paper's data set does."""


_PAPER_TEST = {
    "blur_sigma_px": (0.2, 0.8),
    "poisson_scale": (0.05, 0.3),
    "gaussian_probability": 0.5,
}
_CLEAN = {
    "true_kernel_sizes": (),
    "resize_probabilities": (0.0, 0.0, 1.0),
    "resize_modes": ("area",),
    "gaussian_probability": 1.0,
    "gaussian_sigma": (0.0, 0.0),
    "poisson_scale": (0.0, 0.0),
    "jpeg_quality": (0, 0),
    "round_to_8_bit": False,
}
DEGRADATIONS: dict[str, DegradationSection] = {
    "paper-train": DegradationSection(),
    "paper-test": DegradationSection.model_validate(_PAPER_TEST),
    "clean": DegradationSection.model_validate(_CLEAN),
}


def expand_preset(value: Any) -> Any:
    """A preset's name, or a mapping with the key ``preset`` and what differs, to a section."""
    changes = dict(value) if isinstance(value, Mapping) else {}
    name = changes.pop("preset", None) if changes else value
    if not isinstance(name, str):
        return value
    if name not in DEGRADATIONS:
        raise ValueError(f"must be one of {', '.join(DEGRADATIONS)}")
    return {**DEGRADATIONS[name].model_dump(), **changes}
