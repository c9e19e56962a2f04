"""Autoencoder: the KL-VAE between pixels and latents, on MONAI's AutoencoderKL."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from monai.networks.nets.autoencoderkl import AEKLResBlock, Decoder, Encoder
from torch import Tensor, nn
from torch.nn import functional

NORM_EPS = 1e-6
LOG_VARIANCE_RANGE = (-30.0, 20.0)


class MidAttention(nn.Module):
    """Single-head attention over all places of a feature map, with a residual path.

    MONAI's block would pull in einops and is not built for channels-last; this one gives
    scaled_dot_product_attention a view, which never holds a places x places matrix.

    Args:
        channels: channels in and out.
        norm_groups: groups of its GroupNorm.
    """

    def __init__(self, *, channels: int, norm_groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(norm_groups, channels, eps=NORM_EPS)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Attend among all places."""
        qkv = self.qkv(self.norm(x)).flatten(2).transpose(1, 2)[:, None]  # (b, 1, h w, 3 c)
        q, k, v = qkv.chunk(3, dim=3)
        out = functional.scaled_dot_product_attention(q, k, v)[:, 0].transpose(1, 2)
        attended: Tensor = self.proj(torch.unflatten(out, 2, x.shape[2:]))
        return x + attended


class KLAutoencoder(nn.Module):
    """A KL-regularised autoencoder whose latents are unscaled.

    It computes what published KL-VAEs compute. MONAI's networks differ in four places: their
    encoder gives as many channels as a latent instead of mean and log-variance, they lack the
    activation before the last convolutions, and their decoder is as deep as their encoder.

    Args:
        image_channels: channels of an image.
        latent_channels: channels of a latent.
        channels: channels per resolution, multiples of norm_groups; each further resolution is
            half of the last.
        num_res_blocks: residual blocks per resolution of the encoder; the decoder has one more.
        norm_groups: groups of each GroupNorm.
        mid_attention: attention between the two residual blocks in the middle of encoder and
            decoder.
    """

    def __init__(
        self,
        *,
        image_channels: int,
        latent_channels: int,
        channels: Sequence[int],
        num_res_blocks: int,
        norm_groups: int,
        mid_attention: bool,
    ) -> None:
        super().__init__()
        moments = 2 * latent_channels
        levels = len(channels)
        self.compression = int(2 ** (levels - 1))
        shared = {
            "spatial_dims": 2,
            "channels": tuple(channels),
            "attention_levels": (False,) * levels,
            "norm_num_groups": norm_groups,
            "norm_eps": NORM_EPS,
            "with_nonlocal_attn": False,
        }
        encoder = Encoder(
            in_channels=image_channels,
            out_channels=moments,
            num_res_blocks=(num_res_blocks,) * levels,
            **shared,
        ).blocks
        decoder = Decoder(
            in_channels=latent_channels,
            out_channels=image_channels,
            num_res_blocks=(num_res_blocks + 1,) * levels,
            **shared,
        ).blocks

        def middle() -> list[nn.Module]:
            return _middle(channels=channels[-1], groups=norm_groups, attention=mid_attention)

        self.encoder = nn.Sequential(*encoder[:-2], *middle(), encoder[-2], nn.SiLU(), encoder[-1])
        self.decoder = nn.Sequential(decoder[0], *middle(), *decoder[1:-1], nn.SiLU(), decoder[-1])
        self.quant = nn.Conv2d(moments, moments, 1)
        self.post_quant = nn.Conv2d(latent_channels, latent_channels, 1)

    def moments(
        self, x: Float[Tensor, "b k h w"]
    ) -> tuple[Float[Tensor, "b c height width"], Float[Tensor, "b c height width"]]:
        """Mean and log-variance of the posterior of an image in [-1, 1].

        Args:
            x: sides are multiples of ``compression``.
        """
        mean, log_variance = self.quant(self.encoder(x)).chunk(2, dim=1)
        return mean, log_variance.clamp(*LOG_VARIANCE_RANGE)

    def encode(self, x: Float[Tensor, "b k h w"]) -> Float[Tensor, "b c height width"]:
        """The posterior's mode, which is the same in every run."""
        return self.moments(x)[0]

    def sample(
        self, x: Float[Tensor, "b k h w"], generator: torch.Generator | None = None
    ) -> Float[Tensor, "b c height width"]:
        """A draw from the posterior, for training."""
        mean, log_variance = self.moments(x)
        noise = torch.randn(mean.shape, generator=generator, device=mean.device, dtype=mean.dtype)
        return mean + (log_variance / 2).exp() * noise

    def decode(self, z: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k height width"]:
        """An image in about [-1, 1] from an unscaled latent."""
        image: Tensor = self.decoder(self.post_quant(z))
        return image

    def forward(self, x: Float[Tensor, "b k h w"]) -> Float[Tensor, "b k h w"]:
        """Encode to the mode and decode."""
        return self.decode(self.encode(x))


def _middle(*, channels: int, groups: int, attention: bool) -> list[nn.Module]:
    def block() -> nn.Module:
        made: nn.Module = AEKLResBlock(
            spatial_dims=2,
            in_channels=channels,
            norm_num_groups=groups,
            norm_eps=NORM_EPS,
            out_channels=channels,
        )
        return made

    between = [MidAttention(channels=channels, norm_groups=groups)] if attention else []
    return [block(), *between, block()]
