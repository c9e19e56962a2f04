"""Process: forward diffusion, input scaling and the any-step jump of residual-shift diffusion.

Notation: z_0 clean latent, z_lr latent of the upsampled LR image, z_t noisy latent at index t,
M the refined regions (1 where noise lives). All tensors are (b, c, h, w); ``t`` is (b,), or a map
(b, 1, h, w) of indices when regions stand at different steps.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from medqdm.diffusion.schedule import Schedule

Latent = Float[Tensor, "b c h w"]
Refined = Bool[Tensor, "b 1 h w"]
Index = Int[Tensor, "..."]


class Process:
    """Residual-shift diffusion whose noise lives only in refined regions.

    Args:
        schedule: eta and kappa per index.
        published_masking: True computes what published weights were run with: one input scale for
            all pixels, and the ancestral mean outside refined regions too. False keeps unrefined
            regions at z_lr until the end: without noise, ``z_0 + eta_t (z_lr - z_0)`` would show
            the network the truth in training, which it then seeks in its own errors in sampling.
    """

    def __init__(self, schedule: Schedule, *, published_masking: bool) -> None:
        self.schedule = schedule
        self.published_masking = published_masking
        # eta_{-1} = 0 closes the chain: a jump to -1 returns the prediction itself.
        self._eta = torch.cat([schedule.eta, torch.zeros(1, dtype=torch.float64)]).float()

    def _at(self, t: Index, like: Latent) -> Tensor:
        eta = self._eta.to(like.device)[t]  # index -1 is the appended 0
        return eta[:, None, None, None] if eta.ndim == 1 else eta

    def diffuse(
        self, z_0: Latent, z_lr: Latent, t: Index, noise: Latent, refined: Refined | None = None
    ) -> Latent:
        """Draw z_t: ``z_0 + eta_t (z_lr - z_0) + kappa sqrt(eta_t) noise`` where refined."""
        eta = self._at(t, z_0)
        deviation = self._masked(self.schedule.kappa * eta.sqrt(), refined)
        return self._hold(z_0 + eta * (z_lr - z_0) + deviation * noise, z_lr, refined)

    def prior(self, z_lr: Latent, noise: Latent, refined: Refined | None = None) -> Latent:
        """Draw the start: ``z_lr + kappa sqrt(eta_T) M noise``."""
        deviation = self.schedule.kappa * self._eta[-2].sqrt().to(z_lr.device)
        return z_lr + self._masked(deviation, refined) * noise

    def scale_input(self, z_t: Latent, t: Index, refined: Refined | None = None) -> Latent:
        """What the network sees: ``z_t / sqrt(kappa^2 eta_t M + 1)``."""
        variance = self.schedule.kappa**2 * self._at(t, z_t)
        if not self.published_masking:
            variance = self._masked(variance, refined)
        return z_t / (variance + 1).sqrt()

    def guess(
        self, scaled: Latent, z_lr: Latent, t: Index, deviation: float, refined: Refined | None
    ) -> tuple[Latent, Latent]:
        """What z_t alone says of z_0, if ``z_0 - z_lr`` were white noise of a known deviation d.

        Where refined, with ``a = 1 - eta_t``, ``b = kappa sqrt(eta_t)``, the mean and standard
        deviation of z_0 are::

            z_lr + a d^2 / (a^2 d^2 + b^2) (z_t - z_lr),    b d / sqrt(a^2 d^2 + b^2)

        Elsewhere z_t says nothing: z_lr and 1.

        Args:
            scaled: z_t as ``scale_input`` gives it.
            z_lr: latent of the upsampled LR image.
            t: index per slice or per latent.
            deviation: d, above 0.
            refined: regions that carry noise; None means all.
        """
        eta = self._at(t, scaled)
        noise = self.schedule.kappa**2 * eta  # b^2
        scale = noise if self.published_masking else self._masked(noise, refined)
        z_t = scaled * (scale + 1).sqrt()
        variance = (1 - eta) ** 2 * deviation**2 + noise
        mean = z_lr + (1 - eta) * deviation**2 / variance * (z_t - z_lr)
        spread = (noise / variance).sqrt() * deviation + torch.zeros_like(z_lr)
        if refined is None:
            return mean, spread
        return torch.where(refined, mean, z_lr), torch.where(refined, spread, 1.0)

    def jump(  # noqa: PLR0913  (one for each symbol of its equation)
        self,
        z_t: Latent,
        z_0: Latent,
        z_lr: Latent,
        *,
        t: Index,
        s: Index,
        gamma: float | Float[Tensor, "b 1 h w"],
        noise: Latent,
        refined: Refined | None = None,
        variance: Latent | None = None,
    ) -> Latent:
        """Go from index t to any earlier index s (-1: the end), given a prediction of z_0.

        With ``e = (z_t - z_0 - eta_t (z_lr - z_0)) / (kappa sqrt(eta_t))``, the noise that z_t
        must have, and ``sigma^2 = gamma^2 kappa^2 (eta_s / eta_t)(eta_t - eta_s)``::

            z_s = z_0 + eta_s (z_lr - z_0) + sqrt(kappa^2 eta_s - sigma^2) e + sigma M noise

        gamma = 1 is the posterior q(z_s | z_t, z_0) of the jump (for neighbours: the ancestral
        step), gamma = 0 is deterministic. Unrefined regions stay at z_lr, and end at z_0.
        gamma may be a map. Regions that keep their prediction, with gamma = 0, keep their e, and
        so have the marginal of each index they pass.

        That posterior takes the prediction for the truth. With ``variance``, the truth's v around
        it, z_s varies as much more as z_0 moves it (Analytic-DPM, arXiv:2201.06503, theorem 1)::

            sigma^2 + gamma^2 (1 - eta_s - (1 - eta_t) k)^2 v,    k = sqrt(kappa^2 eta_s - sigma^2)
                                                                      / (kappa sqrt(eta_t))

        Without it, few steps end with too little variance: of a latent whose truth deviates by 0.2
        around its mean, 15 steps with a perfect denoiser keep 40 %.
        """
        eta_t, eta_s = self._at(t, z_t), self._at(s, z_t)
        kappa = self.schedule.kappa
        residual = z_lr - z_0
        e = (z_t - z_0 - eta_t * residual) / (kappa * eta_t.sqrt())
        fresh = gamma**2 * (1 - eta_s / eta_t)  # share of the noise variance that is drawn anew
        kept = kappa * (eta_s * (1 - fresh)).clamp_min(0).sqrt()
        added = kappa**2 * eta_s * fresh
        if variance is not None:
            moved = 1 - eta_s - (1 - eta_t) * kept / (kappa * eta_t.sqrt())
            added = added + (gamma * moved) ** 2 * variance
        drawn = self._masked(added.sqrt(), refined)
        z_s = z_0 + eta_s * residual + kept * e + drawn * noise
        return torch.where(eta_s == 0, z_0, self._hold(z_s, z_lr, refined))

    def _hold(self, z: Latent, z_lr: Latent, refined: Refined | None) -> Latent:
        if refined is None or self.published_masking:
            return z
        return torch.where(refined, z, z_lr)

    @staticmethod
    def _masked(value: Tensor, refined: Refined | None) -> Tensor:
        return value if refined is None else value * refined
