"""Methods: what turns an LR volume into HR slices, the plain interpolations among them."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow

from medqdm.enhancer import Enhancer
from medqdm.picture import upsample_bicubic
from medqdm.volume import Volume

Image = NDArray[np.float32]
OURS = "medqdm"


@runtime_checkable
class Method(Protocol):
    """Anything that super-resolves: ``evaluate`` measures any number of them side by side.

    Args:
        name: its row in the tables, one line, unlike the others'.
    """

    @property
    def name(self) -> str:
        """Its row in the tables."""

    def enhance(self, volume: Volume) -> Iterator[Image]:
        """The slices of an LR volume, enhanced, in order.

        ``evaluate`` gives slices one by one, as volumes of one slice at the slice's own place; what
        a slice becomes may depend on its pixels, its place and the method's own seed alone.

        Args:
            volume: ``(z, y, x)`` in HU, at LR pixel spacing.

        Yields:
            ``(y * upscale, x * upscale)`` float32 in HU for each slice.
        """


@dataclass(frozen=True)
class Interpolation:
    """A plain interpolation as a method.

    Args:
        name: its row.
        upsample: ``(y, x)`` in HU and the factor to ``(y * factor, x * factor)`` in HU.
        factor: output pixels per input pixel.
    """

    name: str
    upsample: Callable[[Image, int], Image]
    factor: int

    def enhance(self, volume: Volume) -> Iterator[Image]:
        """The slices, interpolated."""
        return (self.upsample(np.asarray(hu), self.factor) for hu in volume.hu)


class Model:
    """A loaded model as a method.

    Args:
        enhancer: which.
        name: its row.

    Attributes:
        known: what is known of the last slice: the share that was refined.
        deviation_hu: ``(y, x)`` of the last slice over its draws; None without draws.
    """

    def __init__(self, enhancer: Enhancer, name: str = OURS) -> None:
        self.enhancer = enhancer
        self.name = name
        self.known: dict[str, float] = {}
        self.deviation_hu: Image | None = None

    def enhance(self, volume: Volume) -> Iterator[Image]:
        """The slices, enhanced one at a time."""
        positions = volume.positions_mm.tolist()
        for z, (hu, position_mm) in enumerate(zip(volume.hu, positions, strict=True)):
            done = self.enhancer.enhance_slice(np.asarray(hu), z, position_mm=position_mm)
            self.known = {"share_refined": float(done.refined.mean())}
            self.deviation_hu = done.deviation_hu
            yield done.hu


def enhance_one(method: Method, lr_hu: Image, position_mm: float) -> tuple[Image, float]:
    """One slice, and the seconds it took.

    Args:
        method: which.
        lr_hu: ``(y, x)`` in HU.
        position_mm: of the slice along the normal, on which noise may depend.
    """
    volume = Volume(
        lr_hu[None],
        np.array([[0.0, 0.0, position_mm]]),
        np.array([1.0, 0, 0]),
        np.array([0, 1.0, 0]),
    )
    began = time.perf_counter()
    (hu,) = method.enhance(volume)
    return hu, time.perf_counter() - began


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
