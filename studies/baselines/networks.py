"""Networks: a residual regression CNN, and a U-Net that takes the transformer's place."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from monai.networks.nets import DiffusionModelUNet
from torch import Tensor, nn
from torch.nn import functional

from medqdm.models.light import ResidualBlock
from medqdm.models.transformer import fit_condition
from medqdm.models.windows import WindowIndex

SHUFFLED = 256  # channels that the one pixel shuffle spreads over HR pixels
HEAD = 32  # channels of an attention head
GROUPS = 8  # of GroupNorm: 4 channels or more each, as one alone would lose what the step adds


class EDSR(nn.Module):
    """Residual blocks at LR resolution, one pixel shuffle, added to the bicubic image.

    After EDSR (arXiv:1707.02921): no normalisation, a skip over all blocks. Untrained it gives the
    bicubic image.

    Args:
        width: channels of the blocks.
        blocks: their number.
        upscale: HR pixels per LR pixel along an axis: 2, 4 or 8.
    """

    def __init__(self, *, width: int, blocks: int, upscale: int) -> None:
        super().__init__()
        self.upscale = upscale
        pixel_channels = SHUFFLED // upscale**2
        last = nn.Conv2d(pixel_channels, 1, 3, padding=1)
        nn.init.zeros_(last.weight)
        assert last.bias is not None
        nn.init.zeros_(last.bias)
        self.head = nn.Conv2d(1, width, 3, padding=1)
        self.body = nn.Sequential(
            *(ResidualBlock(channels=width) for _ in range(blocks)),
            nn.Conv2d(width, width, 3, padding=1),
        )
        self.tail = nn.Sequential(
            nn.Conv2d(width, SHUFFLED, 3, padding=1),
            nn.PixelShuffle(upscale),
            nn.ReLU(),
            last,
        )

    def upsample(self, lr: Float[Tensor, "b 1 h w"]) -> Float[Tensor, "b 1 hs ws"]:
        """Bicubic interpolation, pixel-area convention, clamped to [-1, 1]."""
        size = (lr.shape[-2] * self.upscale, lr.shape[-1] * self.upscale)
        up = functional.interpolate(lr, size=size, mode="bicubic", align_corners=False)
        return up.clamp(-1, 1)

    def forward(self, lr: Float[Tensor, "b 1 h w"]) -> Float[Tensor, "b 1 hs ws"]:
        """An HR image in about [-1, 1] from an LR image in [-1, 1] of any size."""
        # one channel tells no memory format, several do: all that follow take that of these
        features = self.head(lr).contiguous(memory_format=torch.channels_last)
        out: Tensor = self.tail(features + self.body(features))
        return self.upsample(lr) + out


class Steps(NamedTuple):
    """Schedule indices, where the transformer would have vectors made of them.

    Args:
        t: (m,) one per slice, or one for all.
    """

    t: Int[Tensor, " m"]

    def at(self, k: int) -> Int[Tensor, " 1"]:
        """The k-th one, for all slices of a batch."""
        return self.t[k : k + 1]


class LatentUNet(nn.Module):
    """ResShift's denoiser (arXiv:2307.12348): a U-Net over the whole latent, by MONAI.

    It has the interface of ``QDM``, so that training and sampling are the same; what a QDM's two
    streams predict, it predicts as one.

    Args:
        latent_channels: channels of a latent.
        condition_channels: channels of the LR image.
        channels: per resolution, each half the one before; multiples of 32.
        res_blocks: residual blocks per resolution on the way down.
        attention_levels: coarsest resolutions with self-attention.
    """

    corrector = None  # as a QDM without one: what trains both asks

    def __init__(
        self,
        *,
        latent_channels: int,
        condition_channels: int,
        channels: Sequence[int],
        res_blocks: int,
        attention_levels: int,
    ) -> None:
        super().__init__()
        first = len(channels) - attention_levels
        self.unet = DiffusionModelUNet(
            spatial_dims=2,
            in_channels=latent_channels + condition_channels,
            out_channels=latent_channels,
            num_res_blocks=res_blocks,
            channels=channels,
            attention_levels=[level >= first for level in range(len(channels))],
            norm_num_groups=GROUPS,
            num_head_channels=HEAD,
            use_flash_attention=True,
        )

    def forward(
        self,
        z_t: Float[Tensor, "b c h w"],
        t: Int[Tensor, " m"],
        lr: Float[Tensor, "b k h_lr w_lr"],
        refined: WindowIndex | None = None,  # noqa: ARG002  (the whole latent, always)
        noisy: Bool[Tensor, "b 1 h w"] | None = None,  # noqa: ARG002
    ) -> Float[Tensor, "b c h w"]:
        """Predict.

        Args:
            z_t: noisy latent, already scaled for the network; sides are multiples of 16.
            t: schedule index per slice, or one for all.
            lr: LR image in [-1, 1], of the same area.
            refined: ignored: all latents are refined.
            noisy: ignored: all latents carry noise.
        """
        seen = torch.cat([z_t, fit_condition(lr, z_t)], dim=1)
        seen = seen.contiguous(memory_format=torch.channels_last)
        out: Tensor = self.unet(seen, t.expand(len(z_t)))
        return out.contiguous()

    def streams(
        self,
        z_t: Float[Tensor, "b c h w"],
        t: Int[Tensor, " b"],
        lr: Float[Tensor, "b k h_lr w_lr"],
        index: WindowIndex,
        noisy: Bool[Tensor, "b 1 h w"] | None = None,
    ) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b c h w"]]:
        """The prediction twice, as both streams' of ``QDM``; see there."""
        out = self(z_t, t, lr, index, noisy)
        return out, out

    def modulations(self, t: Int[Tensor, " m"]) -> Steps:
        """The indices themselves: nothing is computed of them ahead."""
        return Steps(t)
