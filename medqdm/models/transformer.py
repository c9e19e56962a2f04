"""Transformer: QDM's two streams, global upstream and windowed downstream.

The upstream sees the whole latent in patches of 8. The downstream sees patches of 2 in windows of
8 x 8 tokens, asks the upstream for the rest of the picture, and runs in the active windows only.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from medqdm.errors import MedQDMError
from medqdm.models.layers import (
    CrossAttention,
    GatedBlock,
    Head,
    SelfAttention,
    StepEmbedding,
    initialize,
    position_table,
)
from medqdm.models.windows import PATCH, WINDOW, WINDOW_TOKENS, WindowIndex, check_sides

UPSTREAM_PATCH = 8  # latents per upstream token along an axis


class Size(NamedTuple):
    """How large a transformer is.

    Args:
        depth: blocks per stream.
        hidden_size: channels of a token.
        num_heads: attention heads.
    """

    depth: int
    hidden_size: int
    num_heads: int


SIZES: dict[str, Size] = {
    "T": Size(5, 128, 4),
    "S": Size(6, 384, 6),
    "B": Size(6, 768, 12),
    "L": Size(12, 1024, 16),
}


class Upstream(nn.Module):
    """The global stream: patches of 8 latents, attention over the whole slice.

    Args:
        trained: side of the trained latent.
        in_channels: channels of noisy latent and LR image together.
        out_channels: channels of a latent.
        size: depth, width and heads.
    """

    def __init__(self, *, trained: int, in_channels: int, out_channels: int, size: Size) -> None:
        super().__init__()
        depth, hidden, heads = size
        self.trained = trained // UPSTREAM_PATCH
        self.embed = nn.Conv2d(in_channels, hidden, UPSTREAM_PATCH, stride=UPSTREAM_PATCH)
        self.step = StepEmbedding(hidden_size=hidden)
        self.blocks = nn.ModuleList(
            GatedBlock(SelfAttention(hidden_size=hidden, num_heads=heads), hidden_size=hidden)
            for _ in range(depth)
        )
        self.head = Head(hidden_size=hidden, patch=UPSTREAM_PATCH, channels=out_channels)

    def forward(
        self, x: Float[Tensor, "b k h w"], t: Int[Tensor, " b"]
    ) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b tokens hidden"]]:
        """Predict from the whole slice.

        Args:
            x: noisy latent and LR image.
            t: schedule index per slice.

        Returns:
            The prediction, and the last tokens for the downstream.
        """
        tokens = self.embed(x)
        hidden, rows, columns = tokens.shape[1:]
        positions = position_table(hidden, rows, columns, self.trained, x.device)
        tokens = tokens.flatten(2).transpose(1, 2) + positions.flatten(0, 1).to(self.embed.weight)
        step = self.step(t)
        for block in self.blocks:
            tokens = block(tokens, step)
        return self.head(tokens, step, columns), tokens


class DownstreamBlock(nn.Module):
    """Self-attention in the window and an MLP, then cross-attention to the upstream and an MLP.

    Args:
        hidden_size: channels.
        num_heads: attention heads.
    """

    def __init__(self, *, hidden_size: int, num_heads: int) -> None:
        super().__init__()
        self.local = GatedBlock(
            SelfAttention(hidden_size=hidden_size, num_heads=num_heads), hidden_size=hidden_size
        )
        self.cross = GatedBlock(
            CrossAttention(hidden_size=hidden_size, num_heads=num_heads), hidden_size=hidden_size
        )

    def forward(
        self,
        x: Float[Tensor, "n tokens hidden"],
        step: Float[Tensor, "m hidden"],
        context: Float[Tensor, "b context hidden"],
        windows: WindowIndex,
    ) -> Float[Tensor, "n tokens hidden"]:
        """Transform windows, given the step embedding per window and the upstream's tokens."""
        out: Tensor = self.cross(self.local(x, step), step, context, windows)
        return out


class Downstream(nn.Module):
    """The local stream: patches of 2 latents in windows of 8 x 8 tokens.

    Args:
        trained: side of the trained latent.
        in_channels: channels of noisy latent and LR image together.
        out_channels: channels of a latent.
        size: depth, width and heads.
    """

    def __init__(self, *, trained: int, in_channels: int, out_channels: int, size: Size) -> None:
        super().__init__()
        depth, hidden, heads = size
        self.trained = trained // PATCH
        self.embed = nn.Conv2d(in_channels, hidden, PATCH, stride=PATCH)
        self.norm = nn.LayerNorm(hidden, eps=1e-5)
        self.step = StepEmbedding(hidden_size=hidden)
        self.blocks = nn.ModuleList(
            DownstreamBlock(hidden_size=hidden, num_heads=heads) for _ in range(depth)
        )
        self.head = Head(hidden_size=hidden, patch=PATCH, channels=out_channels)

    def forward(
        self,
        x: Float[Tensor, "b k h w"],
        t: Int[Tensor, " b"],
        context: Float[Tensor, "b tokens hidden"],
        windows: WindowIndex,
    ) -> Float[Tensor, "n c 16 16"]:
        """Predict the active windows, all of the batch in one pass.

        Args:
            x: noisy latent and LR image.
            t: schedule index per slice.
            context: the upstream's last tokens.
            windows: the active windows.
        """
        tokens = self.norm(self.embed(windows.gather(x)).flatten(2).transpose(1, 2))
        tokens = tokens + self._positions(windows, tokens.shape[2], x.device)
        step = self.step(t)
        if len(step) > 1:
            step = step[windows.slices]
        for block in self.blocks:
            tokens = block(tokens, step, context, windows)
        predicted: Tensor = self.head(tokens, step, WINDOW_TOKENS)
        return predicted

    def _positions(self, windows: WindowIndex, hidden: int, device: torch.device) -> Tensor:
        _, height, width = windows.size
        table = position_table(hidden, height // PATCH, width // PATCH, self.trained, device)
        tiles = torch.unflatten(table, 1, (-1, WINDOW_TOKENS))
        tiles = torch.unflatten(tiles, 0, (-1, WINDOW_TOKENS))
        flat = tiles.transpose(1, 2).flatten(2, 3).flatten(0, 1)  # (windows, 64, hidden)
        return flat[windows.places].to(self.embed.weight)


class QDM(nn.Module):
    """The two-stream transformer that predicts z_0 (or what the caller trains it for).

    Any latent whose sides are multiples of 16 is taken. An untrained network returns zeros.

    Args:
        latent_size: side of the latents it is trained on, a multiple of 16; larger ones have
            their positions stretched onto this grid.
        latent_channels: channels of a latent.
        condition_channels: channels of the LR image.
        hidden_size: channels of a token, a multiple of 4 and of num_heads.
        depth: blocks per stream.
        num_heads: attention heads.

    Raises:
        MedQDMError: sizes that do not divide.
    """

    def __init__(
        self,
        *,
        latent_size: int,
        latent_channels: int,
        condition_channels: int,
        hidden_size: int,
        depth: int,
        num_heads: int,
    ) -> None:
        super().__init__()
        check_sides(latent_size, latent_size)
        if hidden_size % 4 or hidden_size % num_heads:
            raise MedQDMError(
                f"transformer.hidden_size: must be a multiple of 4 and of num_heads = {num_heads}, "
                f"got {hidden_size}; change one of them"
            )
        size = Size(depth, hidden_size, num_heads)
        in_channels = latent_channels + condition_channels
        self.latent_size = latent_size
        self.latent_channels = latent_channels
        self.hidden_size = hidden_size
        self.upstream = Upstream(
            trained=latent_size, in_channels=in_channels, out_channels=latent_channels, size=size
        )
        self.downstream = Downstream(
            trained=latent_size, in_channels=in_channels, out_channels=latent_channels, size=size
        )
        initialize(self)

    def forward(
        self,
        z_t: Float[Tensor, "b c h w"],
        t: Int[Tensor, " b"],
        lr: Float[Tensor, "b k h_lr w_lr"],
        refined: Bool[Tensor, "b h//2 w//2"] | WindowIndex | None,
    ) -> Float[Tensor, "b c h w"]:
        """Predict z_0: the downstream where refined, the upstream elsewhere.

        Args:
            z_t: noisy latent, already scaled for the network.
            t: schedule index per slice.
            lr: LR image in [-1, 1], of the same area.
            refined: True where the downstream's output is wanted, one per token of 2 x 2 latents;
                or the index made from it once, to be used over many steps; None means everywhere.

        Raises:
            MedQDMError: sides of the latent are not multiples of 16.
        """
        if not isinstance(refined, WindowIndex):
            refined = self.index_windows(z_t, refined)
        up, down = self.streams(z_t, t, lr, refined)
        return torch.where(refined.refined, down, up)

    def streams(
        self,
        z_t: Float[Tensor, "b c h w"],
        t: Int[Tensor, " b"],
        lr: Float[Tensor, "b k h_lr w_lr"],
        windows: WindowIndex,
    ) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b c h w"]]:
        """Both streams' predictions, for the losses of Eq. 6.

        Args:
            z_t: noisy latent, already scaled for the network.
            t: schedule index per slice.
            lr: LR image in [-1, 1], of the same area.
            windows: the active windows.

        Returns:
            Upstream's prediction, and the downstream's, which is zero outside ``windows.active``.
        """
        if windows.size != (len(z_t), *z_t.shape[-2:]):
            raise ValueError(f"windows of {windows.size} do not fit latents {tuple(z_t.shape)}")
        x = torch.cat([z_t, fit_condition(lr, z_t)], dim=1)
        up, context = self.upstream(x, t)
        down = torch.zeros_like(z_t)
        # In training even an empty pass runs: every parameter needs a gradient under DDP.
        if windows.count or torch.is_grad_enabled():
            down = windows.scatter(self.downstream(x, t, context, windows), down)
        return up.to(z_t.dtype), down

    @staticmethod
    def index_windows(
        z_t: Float[Tensor, "b c h w"], refined: Bool[Tensor, "b h//2 w//2"] | None
    ) -> WindowIndex:
        """The windows to run: those that are refined, or all of them when ``refined`` is None."""
        if refined is None:
            return WindowIndex.everywhere((len(z_t), z_t.shape[-2], z_t.shape[-1]), z_t.device)
        return WindowIndex(refined)

    def num_parameters(self, *, include_positions: bool) -> int:
        """Trainable parameters, if wanted with the fixed position tables that the paper counts."""
        trainable = sum(p.numel() for p in self.parameters())
        sides = (self.latent_size // UPSTREAM_PATCH, self.latent_size // PATCH)
        positions = self.hidden_size * sum(side**2 for side in sides)
        return trainable + (positions if include_positions else 0)


def fit_condition(
    lr: Float[Tensor, "b k h_lr w_lr"], z_t: Float[Tensor, "b c h w"]
) -> Float[Tensor, "b k h w"]:
    """The LR image at latent size: bicubic where sizes differ, smoothed first where it shrinks."""
    size = (z_t.shape[-2], z_t.shape[-1])
    if lr.shape[-2:] == size:
        return lr
    shrinks = lr.shape[-2] > size[0] or lr.shape[-1] > size[1]
    return functional.interpolate(
        lr, size=size, mode="bicubic", align_corners=False, antialias=shrinks
    )


__all__ = ["QDM", "SIZES", "WINDOW", "Size", "WindowIndex", "fit_condition"]
