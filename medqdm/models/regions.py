"""Regions: small networks that look at a downstream window and say what running it would bring."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from medqdm.models.windows import WINDOW

Latent = Float[Tensor, "b c h w"]
Refined = Bool[Tensor, "b 1 h w"]

WIDTH = 32
EASY_VARIANCE = 0.01  # latent mean square error from which confidence is full: 0.1 of a deviation


class RegionNet(nn.Module):
    """Convolutions over the latents, then the mean of each window.

    Args:
        in_channels: what it sees.
        outputs: numbers per window.
    """

    def __init__(self, *, in_channels: int, outputs: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(in_channels, WIDTH, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(WIDTH, WIDTH, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(WIDTH, 2 * WIDTH, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(2 * WIDTH, 2 * WIDTH, 3, padding=1),
            nn.ReLU(),
        )
        self.head = nn.Conv2d(2 * WIDTH, outputs, 1)
        nn.init.zeros_(self.head.weight)
        assert self.head.bias is not None
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Float[Tensor, "b k h w"]) -> Float[Tensor, "b outputs rows columns"]:
        """Numbers per window; the sides of x are multiples of 16."""
        out: Tensor = self.head(functional.avg_pool2d(self.body(x), WINDOW // 4))
        return out.float()


class RegionHeads(nn.Module):
    """What adaptive samplers ask about regions, trained on the frozen transformer's estimates.

    Args:
        latent_channels: channels of a latent.
    """

    def __init__(self, *, latent_channels: int) -> None:
        super().__init__()
        self._gain = RegionNet(in_channels=3 * latent_channels + 2, outputs=2)
        self._confidence = RegionNet(in_channels=2 * latent_channels + 1, outputs=1)

    def gain(
        self, z_0: Latent, before: Latent, z_lr: Latent, refined: Refined, progress: float
    ) -> Float[Tensor, "b 2 rows columns"]:
        """Gain of a step in [-1, 1]: of fidelity, and of edges (AdaDiffSR's multi-metric gain).

        Args:
            z_0: the estimate after the step.
            before: the one before it.
            z_lr: latent of the upsampled LR image.
            refined: regions that carry noise.
            progress: of the step, 1 at the first to 0 at the last.
        """
        at = torch.full_like(z_0[:, :1], progress)
        seen = torch.cat([z_0 - z_lr, before - z_lr, z_lr, refined.to(z_0.dtype), at], dim=1)
        return torch.tanh(self._gain(seen))

    def log_confidence(
        self, upstream: Latent, z_lr: Latent, refined: Refined
    ) -> Float[Tensor, "b rows columns"]:
        """Logarithm of the confidence C in (0, 1] in the upstream's first estimate.

        Training minimises ``C r^2 - eta log C``, whose optimum is ``min(1, eta / r^2)`` with the
        mean square error r^2 and eta = ``EASY_VARIANCE`` (PatchScaler).
        """
        seen = torch.cat([upstream - z_lr, z_lr, refined.to(z_lr.dtype)], dim=1)
        return -functional.softplus(self._confidence(seen))[:, 0]

    def error(
        self, upstream: Latent, z_lr: Latent, refined: Refined
    ) -> Float[Tensor, "b rows columns"]:
        """Expected root mean square error of that estimate, ``sqrt(eta / C)``."""
        return EASY_VARIANCE**0.5 * torch.exp(-self.log_confidence(upstream, z_lr, refined) / 2)
