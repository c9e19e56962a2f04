"""Quadtree: which regions of an LR image hold detail, and on how many scales."""

from collections.abc import Iterator
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from medqdm.errors import MedQDMError

CELL_LR_PX = 2  # side of the smallest cell


class Quadtree:
    """The quadtree of a batch of LR images.

    A cell is split while its range (max - min, mean over channels) exceeds the threshold. As the
    range of a cell is never below that of a part of it, the refined regions are exactly the
    smallest cells (2 LR pixels) whose own range exceeds the threshold.

    Args:
        lr: (b, c, h, w) in [-1, 1]; h and w multiples of 2.
        threshold: s, 0 or more, in units of [-1, 1] data; a number, or one per image.
        num_levels: levels that are kept, from cells of 2 LR pixels up, each twice the last.
        inclusive: compare with ``>=`` instead of ``>``.

    >>> lr = torch.zeros(1, 1, 8, 8)
    >>> lr[0, 0, 3, 3] = 1
    >>> Quadtree(lr, threshold=0.15).refined[0].int()
    tensor([[0, 0, 0, 0],
            [0, 1, 0, 0],
            [0, 0, 0, 0],
            [0, 0, 0, 0]], dtype=torch.int32)
    """

    def __init__(
        self,
        lr: Float[Tensor, "b c h w"],
        threshold: float | Float[Tensor, " b"],
        *,
        num_levels: int = 4,
        inclusive: bool = False,
    ) -> None:
        if lr.shape[-2] % CELL_LR_PX or lr.shape[-1] % CELL_LR_PX:
            raise MedQDMError(
                f"quadtree: image sides must be multiples of {CELL_LR_PX}, "
                f"got {tuple(lr.shape[-2:])}; pad the image first"
            )
        limit = torch.as_tensor(threshold, dtype=lr.dtype, device=lr.device).reshape(-1, 1, 1)
        high, low = lr, -lr
        self.ranges: list[Float[Tensor, "b h w"]] = []
        for _ in range(num_levels):
            # ceil_mode: a side that no longer halves keeps its last, smaller cell
            high = functional.max_pool2d(high, 2, ceil_mode=True)
            low = functional.max_pool2d(low, 2, ceil_mode=True)
            self.ranges.append((high + low).mean(dim=1))
        splits = [r >= limit if inclusive else r > limit for r in self.ranges]
        self.refined: Bool[Tensor, "b h w"] = splits[0]
        self._splits = splits
        self._difficulty: Int[Tensor, "b h w"] | None = None
        self._lr_size = (lr.shape[-2], lr.shape[-1])

    @property
    def density(self) -> Float[Tensor, " b"]:
        """Share of the smallest cells that are refined, per image."""
        return self.refined.float().mean(dim=(1, 2))

    def at(self, height: int, width: int) -> Bool[Tensor, "b {height} {width}"]:
        """The refined cells on a grid over the same area.

        Args:
            height: rows of the grid: a multiple of the cells' (each cell is repeated), or a
                divisor (a coarse cell is refined if any part of it is).
            width: columns of the grid, likewise.

        Raises:
            MedQDMError: neither a multiple nor a divisor.
        """
        return on_grid(self.refined, height, width)

    @property
    def difficulty(self) -> Int[Tensor, "b h w"]:
        """Per smallest cell: the number of levels on which the cell around it is split.

        It equals the number of levels exactly where the smallest cell is refined. Setting it
        (``steady``) sets ``refined`` too.
        """
        if self._difficulty is not None:
            return self._difficulty
        total = torch.zeros_like(self.refined, dtype=torch.int64)
        _, height, width = total.shape
        for level, split in enumerate(self._splits):
            spread = split.repeat_interleave(2**level, dim=1).repeat_interleave(2**level, dim=2)
            total += spread[:, :height, :width]
        return total

    @difficulty.setter
    def difficulty(self, difficulty: Int[Tensor, "b h w"]) -> None:
        self._difficulty = difficulty
        self.refined = difficulty == len(self._splits)

    def leaves(self, image: int) -> Iterator[tuple[int, int, int]]:
        """The leaves of one image's tree as (y, x, side) in LR pixels, for drawing.

        Args:
            image: index in the batch.
        """
        top = len(self._splits) - 1
        rows, columns = self._splits[top].shape[1:]
        stack = [(top, y, x) for y in range(rows) for x in range(columns)]
        while stack:
            level, y, x = stack.pop()
            side = CELL_LR_PX * 2**level
            if y * side >= self._lr_size[0] or x * side >= self._lr_size[1]:
                continue
            if level > 0 and self._splits[level][image, y, x]:
                stack += [(level - 1, 2 * y + j, 2 * x + i) for j in (0, 1) for i in (0, 1)]
            else:
                yield y * side, x * side, side


def on_grid(
    refined: Bool[Tensor, "b h w"], height: int, width: int
) -> Bool[Tensor, "b {height} {width}"]:
    """Refined cells on another grid, see ``Quadtree.at``."""
    cells = refined.shape[1:]
    if height % cells[0] == 0 and width % cells[1] == 0:
        rows = refined.repeat_interleave(height // cells[0], dim=1)
        return rows.repeat_interleave(width // cells[1], dim=2)
    if cells[0] % height == 0 and cells[1] % width == 0:
        shape = (-1, height, cells[0] // height, width, cells[1] // width)
        return refined.reshape(shape).any(dim=4).any(dim=2)
    raise MedQDMError(
        f"quadtree: a grid must be a multiple or divisor of {tuple(cells)} cells, "
        f"got {(height, width)}"
    )


def steady(
    difficulty: Int[Tensor, "z h w"], pick: Literal["max", "median"]
) -> Int[Tensor, "z h w"]:
    """Difficulty that does not flicker from slice to slice.

    Args:
        difficulty: of neighbouring slices, in order.
        pick: what a cell takes of its own slice and the two beside it: ``max``: it is refined if
            any of the three is, ``median``: if two are, which loses detail of one slice alone.
            Beyond the ends the last slice is repeated.

    >>> cells = torch.tensor([4, 1, 0, 0, 0, 4, 0]).reshape(7, 1, 1)
    >>> steady(cells, "max").flatten().tolist()
    [4, 4, 1, 0, 4, 4, 4]
    >>> steady(cells, "median").flatten().tolist()
    [4, 1, 0, 0, 0, 0, 0]
    """
    wide = torch.cat([difficulty[:1], difficulty, difficulty[-1:]])
    three = torch.stack([wide[:-2], wide[1:-1], wide[2:]])
    return three.amax(dim=0) if pick == "max" else three.median(dim=0).values


def noise_deviation(lr: Float[Tensor, "b c h w"]) -> Float[Tensor, " b"]:
    """Standard deviation of an image's noise, in its own units, robust against edges.

    Median absolute value of the response to [[1, -2, 1], [-2, 4, -2], [1, -2, 1]] (J. Immerkaer,
    1996), which cancels planes; white noise of deviation 1 answers with deviation 6.
    """
    kernel = torch.tensor([[1.0, -2.0, 1.0], [-2.0, 4.0, -2.0], [1.0, -2.0, 1.0]])
    kernel = kernel.to(lr)[None, None]
    response = functional.conv2d(lr.flatten(0, 1)[:, None], kernel).abs()
    response = response.reshape(len(lr), -1)
    # Air outside the body is exactly constant where the window clips it: leave zeros out.
    median = torch.stack([r[r > 0].median() if (r > 0).any() else r.sum() for r in response])
    return median / 0.6745 / 6


def threshold_for(
    lr: Float[Tensor, "b c h w"], threshold: float, noise_factor: float
) -> float | Float[Tensor, " b"]:
    """The noise-aware threshold ``max(s, c * sd)`` per image; plain s when c is 0."""
    if noise_factor == 0:
        return threshold
    return (noise_factor * noise_deviation(lr)).clamp_min(threshold)
