"""Layers: what can be seen of a review, as slices and as coronal and sagittal planes."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from medqdm.diffusion.quadtree import Quadtree, threshold_for
from medqdm.errors import MedQDMError
from medqdm.metrics import lr_difference_hu
from medqdm.picture import upsample_bicubic
from medqdm.review.planes import Plane, planes_of
from medqdm.review.series import CELL_LR_PX, Review

_BLOCK_BYTES = 128 << 20  # planes that one pass over the series gathers
_SLICES_KEPT = 8

Image = NDArray[Any]


class Layers:
    """The layers of a review, read when they are asked for; several threads may ask.

    - ``enhanced``, ``bicubic``: HU, on the output's pixels.
    - ``uncertainty``: standard deviation over draws in HU, on the output's pixels.
    - ``residual``: the output averaged to the input's pixels minus the input, in HU.
    - ``refined``: 1 where detail was synthesised, on cells of 2 x 2 input pixels.
    - ``levels``: how many levels of the quadtree split around a cell, on the same cells.

    Args:
        review: what is looked at. Without a source: enhanced, refined and uncertainty alone.

    Attributes:
        names: of the layers that there are.
        planes: the coronal and sagittal planes by axis; empty for a single slice.
    """

    def __init__(self, review: Review) -> None:
        self.review = review
        cell = CELL_LR_PX * review.upscale
        self._layers: dict[str, tuple[int, Callable[[int], Image]]] = {
            "enhanced": (1, lambda z: review.enhanced.hu[z]),
            "refined": (cell, lambda z: review.refined[z].astype(np.uint8)),
        }
        if review.source is not None:
            self._layers["bicubic"] = 1, self._bicubic
            self._layers["residual"] = review.upscale, self._residual
            if review.quadtree is not None:
                self._layers["levels"] = cell, self._levels
        deviation = review.deviation_hu
        if deviation is not None:
            self._layers["uncertainty"] = 1, lambda z: deviation[z].astype(np.float32)
        self.names = tuple(self._layers)
        self.planes: dict[str, Plane] = planes_of(review.enhanced)
        self._slices: OrderedDict[tuple[str, int], Image] = OrderedDict()
        self._blocks: dict[str, tuple[str, int, Image]] = {}  # the last one of each layer
        self._lock = threading.Lock()
        self._block_lock = threading.Lock()

    def cell_px(self, name: str) -> int:
        """Side of a layer's pixels in pixels of the output."""
        return self._layers[name][0]

    def count(self, axis: str) -> int:
        """Slices or planes along an axis."""
        return self.review.num_slices if axis == "axial" else self.planes[axis].count

    def at(self, name: str, axis: str, index: int) -> Image:
        """One layer in one slice or plane.

        Args:
            name: one of ``names``.
            axis: axial, or one of ``planes``.
            index: from 0.

        Returns:
            ``(rows, columns)``. An axial slice has the layer's own pixels. A plane has one column
            per pixel of the output and rows of one height; a float layer is NaN where there is
            no slice, the others 0.

        Raises:
            MedQDMError: no such layer, axis or index.
        """
        for what, value, known in (
            ("layer", name, self.names),
            ("axis", axis, ("axial", *self.planes)),
        ):
            if value not in known:
                raise MedQDMError(f"review: {what} must be one of {', '.join(known)}, got {value}")
        if not 0 <= index < self.count(axis):
            raise MedQDMError(
                f"review: {axis} index must be 0 to {self.count(axis) - 1}, got {index}"
            )
        return self._slice(name, index) if axis == "axial" else self._plane(name, axis, index)

    def _slice(self, name: str, z: int) -> Image:
        with self._lock:
            if (name, z) in self._slices:
                self._slices.move_to_end((name, z))
                return self._slices[name, z]
        image = self._layers[name][1](z)
        with self._lock:
            self._slices[name, z] = image
            while len(self._slices) > _SLICES_KEPT:
                self._slices.popitem(last=False)
        return image

    def _plane(self, name: str, axis: str, index: int) -> Image:
        plane = self.planes[axis]
        with self._block_lock:  # one pass over the series at a time
            kept, first, block = self._blocks.get(name, ("", 0, np.empty((0, 0))))
            if kept != axis or not first <= index < first + block.shape[1]:
                self._blocks.pop(name, None)
                del block
                first, block = self._gather(name, axis, index)
                self._blocks[name] = axis, first, block
        return plane.assemble(block[:, index - first], index, self.cell_px(name))

    def _gather(self, name: str, axis: str, index: int) -> tuple[int, Image]:
        """A pass over all slices, for the planes around an index: ``(z, planes, columns)``."""
        plane, cell = self.planes[axis], self.cell_px(name)
        sample = self._slice(name, 0)
        across = plane.lines(sample, np.zeros(1, dtype=np.intp)).shape[1]
        bytes_each = self.review.num_slices * across * sample.itemsize
        size = min(plane.count, max(1, _BLOCK_BYTES // bytes_each))
        first = min(index // size * size, plane.count - size)
        wanted = np.arange(first, first + size)
        block = np.empty((self.review.num_slices, size, across), dtype=sample.dtype)
        for z in range(self.review.num_slices):
            block[z] = plane.lines(self._layers[name][1](z), plane.line(wanted, z) // cell)
        return first, block

    def _bicubic(self, z: int) -> Image:
        return upsample_bicubic(self.review.before.hu[z], self.review.upscale)

    def _residual(self, z: int) -> Image:
        residual = lr_difference_hu(self.review.enhanced.hu[z], self.review.before.hu[z])
        return residual.astype(np.float32)

    def _levels(self, z: int) -> Image:
        """The slice's own quadtree; which cells were refined is taken from the run."""
        settings, refined = self.review.quadtree, self.review.refined[z]
        assert settings is not None  # there is no such layer then
        lr = self.review.model_window.normalize(self.review.before.hu[z])
        sides = [(0, -side % CELL_LR_PX) for side in lr.shape]
        image = torch.from_numpy(np.pad(lr, sides, mode="edge"))[None, None]
        tree = Quadtree(
            image,
            threshold_for(image, settings.threshold, settings.noise_factor),
            num_levels=settings.num_levels,
            inclusive=settings.inclusive,
        )
        levels = tree.difficulty[0].numpy().astype(np.uint8)
        # neighbouring slices and the borders of tiles may have decided otherwise
        others = levels.clip(max=settings.num_levels - 1)
        return np.where(refined, settings.num_levels, others).astype(np.uint8)
