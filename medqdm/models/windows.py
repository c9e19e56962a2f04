"""Windows: which windows of a batch of latents are refined, and how to pack them.

The refined regions stay the same over all sampling steps, so an index is built once and used in
every step without a question to the device.
"""

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from medqdm.errors import MedQDMError

PATCH = 2  # latents per token along an axis
WINDOW_TOKENS = 8  # tokens per window along an axis
WINDOW = PATCH * WINDOW_TOKENS  # latents per window along an axis


class WindowIndex:
    """The active windows of a batch: those with at least one refined token.

    Args:
        refined: (b, h / 2, w / 2) True where the downstream's output is wanted, one per token;
            both sides multiples of 8.

    Attributes:
        size: (b, h, w) of the latents it belongs to.
        count: active windows in the batch.
        refined: (b, 1, h, w), refined regions at latent resolution.
        slices: (count,) index in the batch of each active window.
        places: (count,) number of each active window within its slice, row by row.

    Raises:
        MedQDMError: sides that whole windows do not fill.

    >>> refined = torch.zeros(1, 8, 16, dtype=torch.bool)
    >>> refined[0, 3, 12] = True
    >>> windows = WindowIndex(refined)
    >>> windows.count, windows.places.tolist()
    (1, [1])
    """

    def __init__(self, refined: Bool[Tensor, "b rows columns"]) -> None:
        b, rows, columns = refined.shape
        check_sides(rows * PATCH, columns * PATCH)
        self.size = (b, rows * PATCH, columns * PATCH)
        self.refined: Bool[Tensor, "b 1 h w"] = (
            refined[:, None].repeat_interleave(PATCH, dim=2).repeat_interleave(PATCH, dim=3)
        )
        tiles = torch.unflatten(refined, 2, (-1, WINDOW_TOKENS))
        tiles = torch.unflatten(tiles, 1, (-1, WINDOW_TOKENS))
        self._active: Tensor = tiles.any(dim=4).any(dim=2)  # (b, window rows, window columns)
        active = self._active.flatten(1)
        self._index = active.flatten().nonzero().squeeze(1)
        self.slices = self._index // active.shape[1]
        self.places = self._index % active.shape[1]
        self.count = len(self._index)
        self._per_slice = int(active.sum(dim=1).max()) if b else 0
        rank = active.cumsum(dim=1).flatten()[self._index] - 1
        self._slots = self.slices * self._per_slice + rank
        self._is_even = self.count == b * self._per_slice

    @classmethod
    def everywhere(cls, size: tuple[int, int, int], device: torch.device) -> "WindowIndex":
        """All windows of latents of size (b, h, w)."""
        b, height, width = size
        check_sides(height, width)
        return cls(torch.ones(b, height // PATCH, width // PATCH, dtype=torch.bool, device=device))

    @property
    def active(self) -> Bool[Tensor, "b 1 h w"]:
        """Where the downstream runs, at latent resolution: whole windows."""
        rows = self._active[:, None].repeat_interleave(WINDOW, dim=2)
        return rows.repeat_interleave(WINDOW, dim=3)

    def gather(self, latent: Shaped[Tensor, "b c h w"]) -> Shaped[Tensor, "n c 16 16"]:
        """The active windows of latents, slice by slice and row by row."""
        return _partition(latent)[self._index]

    def scatter(
        self, packed: Float[Tensor, "n c 16 16"], base: Float[Tensor, "b c h w"]
    ) -> Float[Tensor, "b c h w"]:
        """A copy of ``base`` with its active windows replaced."""
        b, c, height, width = base.shape
        tiles = _partition(base).index_copy(0, self._index, packed.to(base.dtype))
        tiles = tiles.reshape(b, height // WINDOW, width // WINDOW, c, WINDOW, WINDOW)
        return tiles.permute(0, 3, 1, 4, 2, 5).reshape(base.shape)

    def pack(self, tokens: Float[Tensor, "n t hidden"]) -> Float[Tensor, "b m hidden"]:
        """Tokens of the windows laid end to end per slice; slices with fewer end in zeros."""
        b = self.size[0]
        if not self._is_even:
            block = tokens.new_zeros(b * self._per_slice, *tokens.shape[1:])
            tokens = block.index_copy(0, self._slots, tokens)
        return tokens.reshape(b, self._per_slice * tokens.shape[1], tokens.shape[2])

    def unpack(
        self, packed: Float[Tensor, "b m hidden"], *, tokens: int
    ) -> Float[Tensor, "n {tokens} hidden"]:
        """Undo ``pack``; ``tokens`` is the number per window."""
        windows = packed.reshape(self.size[0] * self._per_slice, tokens, packed.shape[2])
        return windows if self._is_even else windows[self._slots]


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


def _partition(latent: Shaped[Tensor, "b c h w"]) -> Shaped[Tensor, "all c 16 16"]:
    tiles = torch.unflatten(latent, 3, (-1, WINDOW))
    tiles = torch.unflatten(tiles, 2, (-1, WINDOW))  # (b, c, rows, 16, columns, 16)
    return tiles.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)
