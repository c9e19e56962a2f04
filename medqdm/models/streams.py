"""Streams: the global upstream and the windowed downstream.

The upstream sees the whole latent in patches of 8. The downstream sees patches of 2 in windows of
8 x 8 tokens, asks the upstream for the rest of the picture, and runs in the active windows only.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from medqdm.models.layers import (
    CrossAttention,
    GatedBlock,
    Head,
    SelfAttention,
    StepEmbedding,
    position_table,
)
from medqdm.models.modulations import Modulations
from medqdm.models.windows import PATCH, UPSTREAM_PATCH, WindowIndex


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
        self, x: Float[Tensor, "b k h w"], modulations: Modulations
    ) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b tokens hidden"]]:
        """Predict from the whole slice.

        Args:
            x: noisy latent and LR image.
            modulations: per slice, or one for all.

        Returns:
            The prediction, and the last tokens for the downstream.
        """
        tokens = self.embed(x)
        hidden, rows, columns = tokens.shape[1:]
        positions = position_table(hidden, rows, columns, self.trained, x.device, x.dtype)
        tokens = tokens.flatten(2).transpose(1, 2) + positions.flatten(0, 1)

        def per_token(vectors: Tensor) -> Tensor:
            of_tokens = modulations.upstream_rows
            return vectors[:, None] if of_tokens is None else vectors[of_tokens]

        for block, vectors in zip(self.blocks, modulations.upstream, strict=True):
            tokens = block(tokens, per_token(vectors))
        patches = self.head(tokens, per_token(modulations.upstream_head))
        grid = torch.unflatten(patches, 1, (rows, columns)).permute(0, 3, 1, 2)
        return functional.pixel_shuffle(grid, UPSTREAM_PATCH), tokens


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
        x: Float[Tensor, "count hidden"],
        vectors: tuple[Float[Tensor, "m 6 hidden"], Float[Tensor, "m 6 hidden"]],
        context: Float[Tensor, "b tokens hidden"],
        index: WindowIndex,
    ) -> Float[Tensor, "count hidden"]:
        """Transform the tokens that exist.

        Args:
            x: their list.
            vectors: the modulation's of both halves, per token or one set for all.
            context: the upstream's tokens.
            index: which tokens they are.
        """
        local, cross = vectors
        out: Tensor = self.cross(self.local(x, local, index.windows), cross, context, index.batch)
        return out

    def modulations(self, step: Float[Tensor, "m hidden"]) -> tuple[Tensor, Tensor]:
        """The adaLN vectors of both halves, (m, 6, hidden) each."""
        return self.local.modulation(step), self.cross.modulation(step)


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
        modulations: Modulations,
        context: Float[Tensor, "b tokens hidden"],
        index: WindowIndex,
    ) -> Float[Tensor, "count patch"]:
        """Predict the patches of the tokens that exist, all of the batch in one pass.

        Args:
            x: noisy latent and LR image.
            modulations: per slice, or one for all.
            context: the upstream's last tokens.
            index: the tokens that exist.
        """
        weight = self.embed.weight
        embedded = functional.linear(index.gather(x), weight.flatten(1), self.embed.bias)
        _, height, width = index.size
        table = position_table(
            len(weight), height // PATCH, width // PATCH, self.trained, x.device, x.dtype
        )
        tokens = self.norm(embedded) + index.positions(table)

        def per_token(vectors: Tensor) -> Tensor:
            if modulations.downstream_rows is not None:
                return vectors[modulations.downstream_rows]
            return vectors if len(vectors) == 1 else vectors[index.slices]

        for block, (local, cross) in zip(self.blocks, modulations.downstream, strict=True):
            tokens = block(tokens, (per_token(local), per_token(cross)), context, index)
        predicted: Tensor = self.head(tokens, per_token(modulations.downstream_head))
        return predicted
