"""Windows: which tokens of a batch of latents exist downstream, and how to pack them.

The refined regions stay the same over all sampling steps, so an index is built once and used in
every step without a question to the device. Tokens of the whole batch lie in one list: slice by
slice, window by window, row by row within a window. Layers that act on single tokens see the list;
attention within windows and to the own slice's upstream see it laid out in equal rows.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor
from torch.nn import functional

from medqdm.errors import MedQDMError

PATCH = 2  # latents per downstream token along an axis
UPSTREAM_PATCH = 8  # latents per upstream token along an axis
WINDOW_TOKENS = 8  # tokens per window along an axis
WINDOW = PATCH * WINDOW_TOKENS  # latents per window along an axis

Packing = Literal["windows", "tokens"]


class Rows:
    """A list of tokens laid out in equal rows; rows with fewer tokens end in zeros.

    Args:
        row: (count,) row of each token, rising.
        num_rows: rows, some may be empty.
    """

    def __init__(self, row: Int[Tensor, " count"], num_rows: int) -> None:
        sizes = torch.bincount(row, minlength=num_rows)
        self.num_rows = num_rows
        self.width = int(sizes.max()) if num_rows else 0
        self.is_full = len(row) == num_rows * self.width
        first = sizes.cumsum(0) - sizes
        place = torch.arange(len(row), device=row.device) - first[row]
        self._slots = row * self.width + place
        self.valid: Bool[Tensor, "rows width"] = (
            torch.arange(self.width, device=row.device) < sizes[:, None]
        )

    def lay_out(self, tokens: Float[Tensor, "count channels"]) -> Float[Tensor, "rows width c"]:
        """The list as rows."""
        if not self.is_full:
            empty = tokens.new_zeros(self.num_rows * self.width, tokens.shape[1])
            tokens = empty.index_copy(0, self._slots, tokens)
        return tokens.reshape(self.num_rows, self.width, tokens.shape[1])

    def take_up(self, rows: Float[Tensor, "rows width c"]) -> Float[Tensor, "count c"]:
        """Undo ``lay_out``."""
        flat = rows.flatten(0, 1)
        return flat if self.is_full else flat[self._slots]


class WindowIndex:
    """The tokens of a batch that exist downstream.

    Args:
        refined: (b, h / 2, w / 2) True where the downstream's output is wanted, one per token;
            both sides multiples of 8.
        packing: ``windows``: all tokens of the windows that hold a refined one exist. ``tokens``:
            refined tokens alone exist, and see only each other within their window.

    Attributes:
        size: (b, h, w) of the latents it belongs to.
        count: tokens that exist.
        num_windows: windows that hold any of them.
        refined: (b, 1, h, w), refined regions at latent resolution.
        slices: (count,) index in the batch of each token.
        windows: the tokens as one row per active window.
        batch: the tokens as one row per slice.

    Raises:
        MedQDMError: sides that whole windows do not fill.

    >>> refined = torch.zeros(1, 8, 16, dtype=torch.bool)
    >>> refined[0, 3, 12] = True
    >>> WindowIndex(refined).count, WindowIndex(refined, packing="tokens").count
    (64, 1)
    """

    def __init__(
        self, refined: Bool[Tensor, "b rows columns"], *, packing: Packing = "windows"
    ) -> None:
        b, rows, columns = refined.shape
        check_sides(rows * PATCH, columns * PATCH)
        self.size = (b, rows * PATCH, columns * PATCH)
        self.refined: Bool[Tensor, "b 1 h w"] = _enlarge(refined)
        tiles = _windows_first(refined)  # (all windows, 64)
        exists = tiles.any(dim=1, keepdim=True).expand_as(tiles) if packing == "windows" else tiles
        chosen = exists.flatten().nonzero().squeeze(1)
        grid = torch.arange(refined.numel(), device=refined.device).reshape(refined.shape)
        self._index: Int[Tensor, " count"] = _windows_first(grid).flatten()[chosen]
        window = chosen // WINDOW_TOKENS**2
        self.count = len(self._index)
        self.slices = self._index // (rows * columns)
        self._places = self._index % (rows * columns)
        # number the windows in use from 0 on: the list is sorted by window
        row = (window.diff(prepend=window[:1]) > 0).cumsum(0)
        self.num_windows = int(row[-1]) + 1 if self.count else 0
        self.windows = Rows(row, self.num_windows)
        self.batch = Rows(self.slices, b)
        self._positions: tuple[Tensor, Tensor] | None = None

    @classmethod
    def everywhere(cls, size: tuple[int, int, int], device: torch.device) -> "WindowIndex":
        """All tokens of latents of size (b, h, w)."""
        b, height, width = size
        check_sides(height, width)
        return cls(torch.ones(b, height // PATCH, width // PATCH, dtype=torch.bool, device=device))

    @property
    def active(self) -> Bool[Tensor, "b 1 h w"]:
        """Where the downstream runs, at latent resolution."""
        b, height, width = self.size
        exists = torch.zeros(b * height * width // PATCH**2, dtype=torch.bool)
        exists = exists.to(self._index.device).index_fill(0, self._index, True)
        return _enlarge(exists.reshape(b, height // PATCH, width // PATCH))

    def gather(self, latent: Shaped[Tensor, "b c h w"]) -> Shaped[Tensor, "count 4*c"]:
        """The patches of the tokens, channel by channel and row by row."""
        patches = functional.pixel_unshuffle(latent, PATCH).permute(0, 2, 3, 1)
        return patches.flatten(0, 2)[self._index]

    def scatter(
        self, patches: Float[Tensor, "count 4*c"], base: Float[Tensor, "b c h w"]
    ) -> Float[Tensor, "b c h w"]:
        """A copy of ``base`` with the patches of the tokens replaced."""
        grid = functional.pixel_unshuffle(base, PATCH).permute(0, 2, 3, 1)
        filled = grid.flatten(0, 2).index_copy(0, self._index, patches.to(base.dtype))
        return functional.pixel_shuffle(filled.reshape(grid.shape).permute(0, 3, 1, 2), PATCH)

    def positions(self, table: Float[Tensor, "rows columns hidden"]) -> Float[Tensor, "count h"]:
        """The tokens' rows of a position table, gathered once for all steps."""
        if self._positions is None or self._positions[0] is not table:
            self._positions = table, table.flatten(0, 1)[self._places]
        return self._positions[1]


def check_sides(height: int, width: int) -> None:
    """Refuse latents that whole windows do not fill.

    Raises:
        MedQDMError: a side is not a positive multiple of 16.
    """
    if min(height, width) < 1 or height % WINDOW or width % WINDOW:
        raise MedQDMError(
            f"transformer: latent sides must be multiples of {WINDOW}, got {(height, width)}; "
            "pad the image first"
        )


def _windows_first(grid: Shaped[Tensor, "b rows columns"]) -> Shaped[Tensor, "all 64"]:
    """A grid of tokens as windows: slice by slice, row by row, and so within each window."""
    tiles = torch.unflatten(grid, 2, (-1, WINDOW_TOKENS))
    tiles = torch.unflatten(tiles, 1, (-1, WINDOW_TOKENS))  # (b, rows, 8, columns, 8)
    return tiles.transpose(2, 3).flatten(3, 4).flatten(0, 2)


def _enlarge(tokens: Bool[Tensor, "b rows columns"]) -> Bool[Tensor, "b 1 h w"]:
    """A grid of tokens at latent resolution."""
    return tokens[:, None].repeat_interleave(PATCH, dim=2).repeat_interleave(PATCH, dim=3)
