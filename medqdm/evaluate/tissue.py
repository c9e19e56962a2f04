"""Tissue: where an image is air, lung, fat, soft tissue or bone, to tell errors in HU apart."""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medqdm.metrics import TISSUES

Image = NDArray[np.float32]
Mask = NDArray[np.bool_]

AIR = "air"
MEDIAN_PX = 5
EROSION_PX = 1


def as_shown(tissue: str) -> str:
    """Name of the region where an output, not the truth, is a tissue."""
    return f"{tissue} as shown"


def deep_in(tissue: str) -> str:
    """Name of the part of a tissue that lies an input pixel or more inside of it."""
    return f"{tissue}, inside"


SHOWN = tuple(map(as_shown, TISSUES))  # regions that differ from method to method
INSIDE = tuple(map(deep_in, TISSUES))


def tissue_masks(hr_hu: Image, body: Mask | None = None) -> dict[str, Mask]:
    """Where an image is which tissue; tissues without a pixel are absent.

    The median over 5 x 5 pixels decides, not the pixel itself: among pixels picked by their
    own noisy value any method that draws less noise would look biased. Each region is then eroded
    by a pixel (8 neighbours), so that blurred borders of tissues do not count as bias.

    Args:
        hr_hu: ``(y, x)`` in HU: a truth, or what an output shows.
        body: ``(y, x)`` mask outside of which there is no tissue but air: a mattress has the HU of
            lung. None: tissue may lie anywhere.

    >>> masks = tissue_masks(np.full((9, 9), 40, np.float32))
    >>> list(masks), int(masks["soft tissue"].sum())
    (['soft tissue'], 81)
    """
    smooth = ndimage.median_filter(hr_hu, MEDIAN_PX, mode="nearest")
    square = np.ones((3, 3), dtype=np.bool_)
    found = {}
    for name, (low, high) in TISSUES.items():
        inside = (smooth >= low) & (smooth < high)
        if body is not None and name != AIR:
            inside &= body
        eroded = ndimage.binary_erosion(inside, square, EROSION_PX, border_value=1)
        if eroded.any():
            found[name] = np.asarray(eroded, dtype=np.bool_)
    return found


def inner_parts(masks: dict[str, Mask], input_pixel: int) -> dict[str, Mask]:
    """What of each tissue is farther from its border than an input pixel, under ``deep_in``.

    Args:
        masks: as ``tissue_masks`` gives them.
        input_pixel: side of an input pixel, in pixels of the masks.
    """
    square = np.ones((3, 3), dtype=np.bool_)
    return {
        deep_in(name): ndimage.binary_erosion(mask, square, input_pixel, border_value=1)
        for name, mask in masks.items()
    }
