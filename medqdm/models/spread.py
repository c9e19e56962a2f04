"""Spread: how far estimates are off, place by place, so that draws differ as much as they err."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

Latent = Float[Tensor, "b c h w"]
Refined = Bool[Tensor, "b 1 h w"]

WIDTH = 32
TAPS = 9  # of the filters that colour a texture: correlations reach so far at the most
FIRST_DEVIATION = 0.02  # of pixels in [-1, 1], before training: 20 HU of a window of 2000


class SpreadNet(nn.Module):
    """Convolutions at the latents' places.

    Args:
        in_channels: what it sees.
        outputs: numbers per latent.
        num_steps: of the process; each has a vector of its own.
    """

    def __init__(self, *, in_channels: int, outputs: int, num_steps: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(in_channels, WIDTH, 3, padding=1)
        self.step = nn.Embedding(num_steps, WIDTH)
        self.middle = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)
        self.last = nn.Conv2d(WIDTH, outputs, 1)
        nn.init.zeros_(self.last.weight)
        assert self.last.bias is not None
        nn.init.zeros_(self.last.bias)

    def forward(
        self, x: Float[Tensor, "b k h w"], t: Int[Tensor, "..."]
    ) -> Float[Tensor, "b outputs h w"]:
        """Numbers per latent, float32; t is an index per slice (b,), or a map (b, 1, h, w)."""
        vectors = self.step(t)
        where = vectors[:, :, None, None] if t.ndim == 1 else vectors[:, 0].permute(0, 3, 1, 2)
        hidden = functional.relu(self.first(x) + where)
        out: Tensor = self.last(functional.relu(self.middle(hidden)))
        return out.float()


class Spread(nn.Module):
    """Variances of what a model's estimates leave open, trained on the frozen model.

    Two of them: of the latent that a step estimates, which the reverse step must add to its noise
    (Bao et al., Analytic-DPM, arXiv:2201.06503, and arXiv:2206.07309 for one per place), and of
    the pixels that the decoder makes of a latent, which is the noise of its Gaussian likelihood.

    Args:
        latent_channels: channels of a latent.
        compression: pixels per latent and axis.
        num_steps: of the process.

    Attributes:
        filters: (2, 1, TAPS, TAPS) with a sum of squares of 1: what turns white noise into the
            texture that the decoder leaves out, in regions that are not refined, and that are.
    """

    filters: Tensor

    def __init__(self, *, latent_channels: int, compression: int, num_steps: int) -> None:
        super().__init__()
        seen = 2 * latent_channels + 1
        self.compression = compression
        self._latent = SpreadNet(in_channels=seen, outputs=latent_channels, num_steps=num_steps)
        self._pixel = SpreadNet(in_channels=seen, outputs=compression**2, num_steps=1)
        white = torch.zeros(2, 1, TAPS, TAPS)
        white[:, :, TAPS // 2, TAPS // 2] = 1
        self.register_buffer("filters", white)

    def log_variance(
        self, z_0: Latent, z_lr: Latent, refined: Refined, t: Int[Tensor, "..."], known: Latent
    ) -> Latent:
        """Logarithm of the variance of the true z_0 around a step's estimate.

        Args:
            z_0: the estimate.
            z_lr: latent of the upsampled LR image.
            refined: regions that carry noise.
            t: index of the step per slice (b,), or per latent (b, 1, h, w).
            known: deviation that z_t alone would leave (``Process.guess``), which the network
                corrects.
        """
        return 2 * known.log() + self._latent(self._seen(z_0, z_lr, refined), t)

    def pixel_log_variance(
        self, z_0: Latent, z_lr: Latent, refined: Refined
    ) -> Float[Tensor, "b 1 hs ws"]:
        """Logarithm of the variance of true pixels in [-1, 1] around those decoded of z_0."""
        step = torch.zeros(len(z_0), dtype=torch.int64, device=z_0.device)
        found = self._pixel(self._seen(z_0, z_lr, refined), step)
        first = 2 * torch.tensor(FIRST_DEVIATION).log()
        return functional.pixel_shuffle(found, self.compression) + first.to(found.device)

    def textured(
        self,
        image: Float[Tensor, "b 1 hs ws"],
        z_0: Latent,
        z_lr: Latent,
        refined: Refined,
        white: Float[Tensor, "b 1 hs ws"],
        share: float = 1.0,
    ) -> Float[Tensor, "b 1 hs ws"]:
        """An image decoded of a draw with the texture that latents do not hold, in [-1, 1].

        The window ends at -1, so what is added follows a gamma distribution of values above -1,
        with the image as its mean: with ``a = image + 1``, deviation d and ``k = (a / d)^2``::

            a (1 - 1 / (9 k) + noise / (3 sqrt(k)))^3 - 1    (Wilson and Hilferty, 1931)

        which is ``image + d noise`` where the window is far away. Symmetric noise, clipped, would
        brighten the air.

        Args:
            image: decoded, in [-1, 1].
            z_0: the draw.
            z_lr: latent of the upsampled LR image.
            refined: regions that carry noise.
            white: standard normal noise, one number per pixel.
            share: of the deviation that is added, 0 to 1.
        """
        deviation = share * (self.pixel_log_variance(z_0, z_lr, refined) / 2).exp()
        around = [TAPS // 2] * 4
        coloured = functional.conv2d(functional.pad(white, around, mode="circular"), self.filters)
        is_refined = refined.repeat_interleave(self.compression, dim=2)
        is_refined = is_refined.repeat_interleave(self.compression, dim=3)
        noise = torch.where(is_refined, coloured[:, 1:], coloured[:, :1])
        above = (image + 1).clamp_min(1e-6)
        relative = deviation / above  # 1 / sqrt(k)
        root = (1 - relative**2 / 9 + noise * relative / 3).clamp_min(0)
        return (above * root**3 - 1).clamp(-1, 1)

    @staticmethod
    def _seen(z_0: Latent, z_lr: Latent, refined: Refined) -> Float[Tensor, "b k h w"]:
        return torch.cat([z_0 - z_lr, z_lr, refined.to(z_lr.dtype)], dim=1)
