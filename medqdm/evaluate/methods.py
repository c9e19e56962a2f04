"""Methods: the plain interpolations that enhancing has to beat."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow

from medqdm.picture import upsample_bicubic

Image = NDArray[np.float32]


def upsample_lanczos(lr_hu: Image, factor: int) -> Image:
    """Lanczos enlargement of a slice (three lobes), its outer edges kept (pixel-area convention).

    At the border the kernel is cut and renormalized, so a flat slice stays flat.

    Args:
        lr_hu: ``(y, x)`` in HU.
        factor: output pixels per input pixel.
    """
    height, width = lr_hu.shape
    image = Pillow.fromarray(np.ascontiguousarray(lr_hu, dtype=np.float32))
    out = image.resize((width * factor, height * factor), Pillow.Resampling.LANCZOS)
    return np.asarray(out, dtype=np.float32)


BASELINES: dict[str, Callable[[Image, int], Image]] = {
    "bicubic": upsample_bicubic,
    "lanczos": upsample_lanczos,
}
