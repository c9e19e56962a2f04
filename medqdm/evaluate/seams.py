"""Seams: whether an image steps where input pixels, cells, windows or tiles of the network meet."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medqdm.config import Task
from medqdm.jobs import SliceJob
from medqdm.models.windows import WINDOW

Image = NDArray[np.float32]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Borders:
    """Where parts of an image meet.

    Args:
        rows: that begin a part; the step is between each and the one before.
        columns: the same.
        beside_px: distance of the lines beside them that they are compared with.
    """

    rows: Sequence[int]
    columns: Sequence[int]
    beside_px: int


def borders_of(task: Task, lr_shape: tuple[int, int]) -> dict[str, Borders]:
    """Where the parts that a network works in meet, in output pixels.

    Cells are the 2 x 2 input pixels that the quadtree decides on, windows those of the downstream
    transformer, tiles the overlapping squares that a slice larger than one is cut into: a tile's
    own first and last rows and columns inside the slice. They are compared with lines one input
    pixel away, because any enlargement varies within an input pixel; input pixels themselves are
    compared with their middles.

    Args:
        task: sizes.
        lr_shape: ``(y, x)`` of the input.

    Returns:
        ``pixel``, ``cell``, ``window`` and, if there are several, ``tile``.
    """
    upscale = task.upscale
    found = {
        "pixel": _every(upscale, lr_shape, upscale, upscale // 2),
        "cell": _every(2 * upscale, lr_shape, upscale, upscale),
        "window": _every(WINDOW * task.autoencoder.compression, lr_shape, upscale, upscale),
    }
    job = SliceJob(task, [0], 0, np.zeros(lr_shape, dtype=np.float32), 0.0)
    rows, columns = (
        sorted({at * upscale for k in starts for at in (k, k + side) if 0 < at < whole})
        for starts, side, whole in zip(
            zip(*job.corners, strict=True), job.tile_shape, lr_shape, strict=True
        )
    )
    if rows or columns:
        found["tile"] = Borders(rows, columns, upscale)
    return found


def _every(period: int, lr_shape: tuple[int, int], upscale: int, beside_px: int) -> Borders:
    rows, columns = (range(period, side * upscale, period) for side in lr_shape)
    return Borders(rows, columns, beside_px)


def seam_ratio(hu: Image, borders: Borders, mask: Mask | None = None) -> float:
    """Mean absolute step across borders over that across the lines beside them.

    About 1 where nothing is special about the borders; an image has its own chance value, so it
    says something beside the truth's alone.

    Args:
        hu: ``(y, x)`` in HU.
        borders: where to look.
        mask: ``(y, x)`` where both pixels of a step must lie; None: anywhere.

    Returns:
        NaN without borders, without masked steps at them, or without any step beside them.

    >>> ramp = np.tile(np.arange(32, dtype=np.float32), (32, 1))
    >>> ramp[:, 16:] += 4
    >>> seam_ratio(ramp, Borders([], [16], beside_px=4))
    5.0
    """
    at, beside = [0.0, 0], [0.0, 0]  # sums and counts of steps
    for image, lines, inside in (
        (hu, borders.rows, mask),
        (hu.T, borders.columns, None if mask is None else mask.T),
    ):
        steps = np.abs(np.diff(image.astype(np.float64), axis=0))
        counts = np.ones(steps.shape, dtype=np.bool_)
        if inside is not None:
            counts = inside[1:] & inside[:-1]
        near = {line + k for line in lines for k in (-borders.beside_px, borders.beside_px)}
        for total, chosen in ((at, lines), (beside, near - set(lines))):
            index = np.array([k - 1 for k in chosen if 0 < k <= len(steps)], dtype=np.intp)
            total[0] += float(steps[index][counts[index]].sum())
            total[1] += int(counts[index].sum())
    if not at[1] or not beside[0]:
        return float("nan")
    return (at[0] / at[1]) / (beside[0] / beside[1])
