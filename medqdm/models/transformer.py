"""Transformer: QDM's two streams, global upstream and windowed downstream.

The upstream sees the whole latent in patches of 8. The downstream sees patches of 2 in windows of
8 x 8 tokens, asks the upstream for the rest of the picture, and runs in the active windows only.
A task may add convolutions over what both predict (``models.corrector``).
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from medqdm.errors import MedQDMError
from medqdm.models.corrector import Corrector
from medqdm.models.layers import (
    CrossAttention,
    GatedBlock,
    Head,
    SelfAttention,
    StepEmbedding,
    initialize,
    position_table,
)
from medqdm.models.windows import PATCH, WINDOW, WindowIndex, check_sides

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


class Modulations(NamedTuple):
    """What the networks are told of some steps, adaLN vectors first: they depend on nothing else.

    Args:
        upstream: per block (m, 6, hidden).
        upstream_head: (m, 2, hidden).
        downstream: per block two of (m, 6, hidden), of its local half and its cross half.
        downstream_head: (m, 2, hidden).
        upstream_rows: which of the m steps each upstream token stands at; None: the m steps are
            one per slice, or one for all.
        downstream_rows: likewise for each token that exists downstream.
        corrector: per block of the corrector (m, 2, channels); None without one.
        corrector_rows: likewise for each latent.
    """

    upstream: tuple[Float[Tensor, "m 6 hidden"], ...]
    upstream_head: Float[Tensor, "m 2 hidden"]
    downstream: tuple[tuple[Float[Tensor, "m 6 hidden"], Float[Tensor, "m 6 hidden"]], ...]
    downstream_head: Float[Tensor, "m 2 hidden"]
    upstream_rows: Int[Tensor, "b tokens"] | None = None
    downstream_rows: Int[Tensor, " count"] | None = None
    corrector: tuple[Float[Tensor, "m 2 channels"], ...] | None = None
    corrector_rows: Int[Tensor, "b h w"] | None = None

    def at(self, k: int) -> "Modulations":
        """The vectors of the k-th step alone, for all slices of a batch."""
        part = slice(k, k + 1)
        return Modulations(
            tuple(v[part] for v in self.upstream),
            self.upstream_head[part],
            tuple((local[part], cross[part]) for local, cross in self.downstream),
            self.downstream_head[part],
            corrector=None if self.corrector is None else tuple(v[part] for v in self.corrector),
        )

    def to(self, dtype: torch.dtype) -> "Modulations":
        """The vectors in another dtype."""
        return self._replace(
            upstream=tuple(v.to(dtype) for v in self.upstream),
            upstream_head=self.upstream_head.to(dtype),
            downstream=tuple((v.to(dtype), w.to(dtype)) for v, w in self.downstream),
            downstream_head=self.downstream_head.to(dtype),
            corrector=None
            if self.corrector is None
            else tuple(v.to(dtype) for v in self.corrector),
        )

    def at_map(self, rows: Int[Tensor, "b 1 h w"], index: WindowIndex) -> "Modulations":
        """The vectors of a step per token, for regions that stand at different steps.

        Args:
            rows: which of the m steps each latent stands at; constant in patches of 8 x 8.
            index: the tokens that exist downstream.
        """
        return self._replace(
            upstream_rows=rows[:, 0, ::UPSTREAM_PATCH, ::UPSTREAM_PATCH].flatten(1),
            downstream_rows=index.gather(rows)[:, 0],
            corrector_rows=rows[:, 0],
        )


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
        mask_input: whether the network sees the refined regions as a channel.
        corrector: width and blocks of the convolutions over what both streams predict; None: none,
            as published.

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
        mask_input: bool = False,
        corrector: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        check_sides(latent_size, latent_size)
        if hidden_size % 4 or hidden_size % num_heads:
            raise MedQDMError(
                f"transformer.hidden_size: must be a multiple of 4 and of num_heads = {num_heads}, "
                f"got {hidden_size}; change one of them"
            )
        size = Size(depth, hidden_size, num_heads)
        in_channels = latent_channels + condition_channels + mask_input
        self.mask_input = mask_input
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
        self.corrector = None
        if corrector is not None:
            channels, blocks = corrector
            self.corrector = Corrector(
                in_channels=in_channels + latent_channels,
                out_channels=latent_channels,
                channels=channels,
                blocks=blocks,
            )

    def forward(
        self,
        z_t: Float[Tensor, "b c h w"],
        t: Int[Tensor, " b"] | Modulations,
        lr: Float[Tensor, "b k h_lr w_lr"],
        refined: Bool[Tensor, "b h//2 w//2"] | WindowIndex | None,
        noisy: Bool[Tensor, "b 1 h w"] | None = None,
    ) -> Float[Tensor, "b c h w"]:
        """Predict z_0: the downstream where refined, the upstream elsewhere; then ``correct``.

        Args:
            z_t: noisy latent, already scaled for the network.
            t: schedule index per slice, or the modulations of a step for all slices.
            lr: LR image in [-1, 1], of the same area.
            refined: True where the downstream's output is wanted, one per token of 2 x 2 latents;
                or the index made from it once, to be used over many steps; None means everywhere.
            noisy: see ``streams``.

        Raises:
            MedQDMError: sides of the latent are not multiples of 16.
        """
        if not isinstance(refined, WindowIndex):
            refined = self.index_windows(z_t, refined)
        modulations = t if isinstance(t, Modulations) else self.modulations(t)
        up, down = self.streams(z_t, modulations, lr, refined, noisy)
        predicted = torch.where(refined.refined, down, up)
        return self.correct(predicted, z_t, modulations, lr, refined, noisy)

    def correct(
        self,
        predicted: Float[Tensor, "b c h w"],
        z_t: Float[Tensor, "b c h w"],
        t: Int[Tensor, " b"] | Modulations,
        lr: Float[Tensor, "b k h_lr w_lr"],
        index: WindowIndex,
        noisy: Bool[Tensor, "b 1 h w"] | None = None,
    ) -> Float[Tensor, "b c h w"]:
        """What the streams predict, with what the corrector adds, if there is one.

        Regions that carry noise but do not run stay the upstream's.

        Args:
            predicted: the downstream's where refined, the upstream's elsewhere.
            z_t: see ``streams``, as for the next four.
            t: the same.
            lr: the same.
            index: the same.
            noisy: the same.
        """
        if self.corrector is None:
            return predicted
        if isinstance(t, Modulations):
            vectors, rows = t.corrector, t.corrector_rows
        else:
            vectors, rows = self.corrector.vectors(t), None
        assert vectors is not None
        x = torch.cat([self._seen(z_t, lr, index, noisy), predicted], dim=1)
        added: Tensor = self.corrector(x, vectors, rows)
        if noisy is not None:
            added = added * (index.refined | ~noisy)
        return predicted + added.to(predicted.dtype)

    def _seen(
        self,
        z_t: Float[Tensor, "b c h w"],
        lr: Float[Tensor, "b k h_lr w_lr"],
        index: WindowIndex,
        noisy: Bool[Tensor, "b 1 h w"] | None,
    ) -> Float[Tensor, "b channels h w"]:
        """Noisy latent, LR image and, if wanted, the regions that carry noise."""
        seen = [z_t, fit_condition(lr, z_t)]
        if self.mask_input:
            seen.append((index.refined if noisy is None else noisy).to(z_t.dtype))
        return torch.cat(seen, dim=1)

    def streams(
        self,
        z_t: Float[Tensor, "b c h w"],
        t: Int[Tensor, " b"] | Modulations,
        lr: Float[Tensor, "b k h_lr w_lr"],
        index: WindowIndex,
        noisy: Bool[Tensor, "b 1 h w"] | None = None,
    ) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b c h w"]]:
        """Both streams' predictions, for the losses of Eq. 6.

        Args:
            z_t: noisy latent, already scaled for the network.
            t: schedule index per slice, or the modulations of a step for all slices.
            lr: LR image in [-1, 1], of the same area.
            index: the tokens that exist downstream.
            noisy: regions that carry noise, for networks that see them (``mask_input``); None:
                those that the index refines.

        Returns:
            Upstream's prediction, and the downstream's, which is zero outside ``index.active``.
        """
        if index.size != (len(z_t), *z_t.shape[-2:]):
            raise ValueError(f"windows of {index.size} do not fit latents {tuple(z_t.shape)}")
        modulations = t if isinstance(t, Modulations) else self.modulations(t)
        x = self._seen(z_t, lr, index, noisy)
        up, context = self.upstream(x, modulations)
        down = torch.zeros_like(z_t)
        # In training even an empty pass runs: every parameter needs a gradient under DDP.
        if index.count or torch.is_grad_enabled():
            down = index.scatter(self.downstream(x, modulations, context, index), down)
        return up.to(z_t.dtype), down

    def modulations(self, t: Int[Tensor, " m"]) -> Modulations:
        """The adaLN vectors at schedule indices, to be computed once for many calls."""
        up, down = self.upstream, self.downstream
        step_up, step_down = up.step(t), down.step(t)
        return Modulations(
            tuple(block.modulation(step_up) for block in up.blocks),  # type: ignore[operator]
            up.head.modulation(step_up),
            tuple(block.modulations(step_down) for block in down.blocks),  # type: ignore[operator]
            down.head.modulation(step_down),
            corrector=None if self.corrector is None else self.corrector.vectors(t),
        )

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


__all__ = ["QDM", "SIZES", "WINDOW", "Modulations", "Size", "WindowIndex", "fit_condition"]
