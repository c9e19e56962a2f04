"""Transformer: QDM, the upstream everywhere and the downstream where the quadtree finds detail.

A task may add convolutions over what both streams predict (``models.corrector``).
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from medqdm.errors import MedQDMError
from medqdm.models.corrector import Corrector, CorrectorSize
from medqdm.models.layers import initialize
from medqdm.models.modulations import Modulations
from medqdm.models.streams import Downstream, Size, Upstream
from medqdm.models.windows import PATCH, UPSTREAM_PATCH, WindowIndex, check_sides


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
        corrector: size of the convolutions over what both streams predict; None: none,
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
        corrector: CorrectorSize | None = None,
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
            self.corrector = Corrector(
                in_channels=in_channels + latent_channels,
                out_channels=latent_channels,
                size=corrector,
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
            noisy: see ``QDM.streams``.

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
            z_t: see ``QDM.streams``, as for the next four.
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
