"""Light autoencoder: all its width at latent resolution, its decoder conditioned on the LR image.

The paper's KL-VAE spends its time on full-resolution convolutions. Here pixels are folded into
channels first and unfolded last, so a layer costs a sixteenth; and since the decoder sees the LR
image, the latent has to carry only what the LR image does not show. Nothing is normalised over
space, so a pixel depends on its neighbourhood alone.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from medqdm.models.autoencoder import LOG_VARIANCE_RANGE

PIXEL_CHANNELS = 16  # channels of the one layer at full resolution


class ResidualBlock(nn.Module):
    """``x + conv(relu(conv(x)))`` (EDSR, arXiv:1707.02921); the identity at first.

    Args:
        channels: channels in and out.
    """

    def __init__(self, *, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)
        assert self.conv2.bias is not None
        nn.init.zeros_(self.conv2.bias)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Transform a feature map."""
        out: Tensor = self.conv2(functional.relu(self.conv1(x)))
        return x + out


class LightAutoencoder(nn.Module):
    """A KL-regularised autoencoder without full-resolution width.

    Encoder: pixel-unshuffle, residual blocks, mean and log-variance. Decoder: latent and LR
    image, residual blocks, pixel-shuffle, one convolution, added to the bicubic LR image.

    Args:
        image_channels: channels of an image.
        latent_channels: channels of a latent.
        compression: pixels per latent along an axis.
        channels: width of both bodies.
        encoder_blocks: residual blocks of the encoder.
        decoder_blocks: residual blocks of the decoder.
        upscale: HR pixels per LR pixel along an axis: 2, 4 or 8.
    """

    def __init__(
        self,
        *,
        image_channels: int,
        latent_channels: int,
        compression: int,
        channels: int,
        encoder_blocks: int,
        decoder_blocks: int,
        upscale: int,
    ) -> None:
        super().__init__()
        self.compression = compression
        self.upscale = upscale
        # how far an output depends on its surroundings, in latents
        self.encoder_reach = 2 * encoder_blocks + 2
        self.decoder_reach = 2 * decoder_blocks + 3  # its last convolution looks a pixel far
        # an LR image finer than the latent (x2) is folded like the HR image, not reduced
        self._fold = max(1, compression // upscale)
        seen = latent_channels + image_channels * self._fold**2
        self.encoder = nn.Sequential(
            nn.PixelUnshuffle(compression),
            nn.Conv2d(image_channels * compression**2, channels, 3, padding=1),
            *(ResidualBlock(channels=channels) for _ in range(encoder_blocks)),
            nn.Conv2d(channels, 2 * latent_channels, 3, padding=1),
        )
        last = nn.Conv2d(PIXEL_CHANNELS, image_channels, 3, padding=1)
        nn.init.zeros_(last.weight)  # the untrained decoder gives the bicubic image
        assert last.bias is not None
        nn.init.zeros_(last.bias)
        self.decoder = nn.Sequential(
            nn.Conv2d(seen, channels, 3, padding=1),
            *(ResidualBlock(channels=channels) for _ in range(decoder_blocks)),
            nn.Conv2d(channels, PIXEL_CHANNELS * compression**2, 3, padding=1),
            nn.PixelShuffle(compression),
            nn.ReLU(),
            last,
        )

    def moments(
        self, x: Float[Tensor, "b k h w"]
    ) -> tuple[Float[Tensor, "b c height width"], Float[Tensor, "b c height width"]]:
        """Mean and log-variance of the posterior of an image in [-1, 1].

        Args:
            x: sides are multiples of ``compression``.
        """
        mean, log_variance = self.encoder(x).chunk(2, dim=1)
        return mean, log_variance.clamp(*LOG_VARIANCE_RANGE)

    def encode(self, x: Float[Tensor, "b k h w"]) -> Float[Tensor, "b c height width"]:
        """The posterior's mode."""
        return self.moments(x)[0]

    def decode(
        self, z: Float[Tensor, "b c h w"], lr: Float[Tensor, "b k h_lr w_lr"]
    ) -> Float[Tensor, "b k height width"]:
        """An image in about [-1, 1] from an unscaled latent and the LR image of the same area."""
        size = (z.shape[-2] * self.compression, z.shape[-1] * self.compression)
        up = functional.interpolate(lr, size=size, mode="bicubic", align_corners=False)
        seen = torch.cat([z, self._condition(lr, z)], dim=1)
        out: Tensor = self.decoder(seen.contiguous(memory_format=torch.channels_last))
        return up.clamp(-1, 1) + out

    def _condition(self, lr: Tensor, z: Tensor) -> Tensor:
        if self._fold > 1:
            return functional.pixel_unshuffle(lr, self._fold)
        if lr.shape[-2:] == z.shape[-2:]:
            return lr
        return functional.interpolate(
            lr, size=(z.shape[-2], z.shape[-1]), mode="bicubic", align_corners=False
        )
