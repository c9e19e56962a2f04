"""Spread: variances of what a trained model leaves open, by maximum likelihood."""

from typing import Any

import pytorch_lightning as pl
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from medqdm.config import Task
from medqdm.data import SliceDataModule
from medqdm.device import autocast
from medqdm.engine import Engine
from medqdm.models.spread import TAPS
from medqdm.training.optimizer import check_finite, make_optimizer

Latent = Float[Tensor, "b c h w"]
Image = Float[Tensor, "b 1 hs ws"]

TEXTURE_SAMPLES = 32  # training samples over which the decoder's texture is measured
ALL_REFINED_SHARE = 0.5  # of the batches; the others see the task's threshold


class SpreadModule(pl.LightningModule):
    """Trains the spread of an engine; everything else stays frozen.

    Args:
        task: its ``training.spread`` section says how.
        engine: networks and process, with ``spread``.
    """

    def __init__(self, task: Task, engine: Engine) -> None:
        super().__init__()
        assert engine.spread is not None
        self.task = task
        self.settings = task.training.spread
        self.engine = engine
        self.spread = engine.spread
        engine.autoencoder.requires_grad_(False)
        engine.qdm.requires_grad_(False)

    def training_step(self, batch: dict[str, Any], _batch_idx: int) -> Tensor:
        """Gaussian negative log likelihood of the true latents, and of the true pixels."""
        found = self.likelihoods(batch)
        loss = found["latent"] + found["pixel"]
        check_finite(loss, batch)
        self.log_dict({f"train/{name}": value for name, value in found.items()})
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def likelihoods(self, batch: dict[str, Any]) -> dict[str, Float[Tensor, ""]]:
        """Both negative log likelihoods, and both mean ratios of squared errors to variances.

        A latent counts where it is refined, as noise lives there alone; pixels are decoded of true
        latents there and of estimates elsewhere, as in a draw.
        """
        lr, engine = batch["lr"], self.engine
        with torch.no_grad():
            z_0, z_lr, z, refined, t = self._estimates(batch["hr"], lr)
            known = engine.known_deviation(z_lr, t, refined)
            seen = torch.where(refined, z_0, z)
            apart = (batch["hr"] - engine.decode(seen, lr)) ** 2
        log_variance = self.spread.log_variance(z, z_lr, refined, t, known)
        latent, latent_ratio = _likelihood((z_0 - z) ** 2, log_variance, refined.expand_as(z))
        log_pixel = self.spread.pixel_log_variance(seen, z_lr, refined)
        pixel, pixel_ratio = _likelihood(apart, log_pixel, torch.ones_like(apart).bool())
        return {
            "latent": latent,
            "pixel": pixel,
            "latent_ratio": latent_ratio.detach(),
            "pixel_ratio": pixel_ratio.detach(),
        }

    def _estimates(self, hr: Image, lr: Image) -> tuple[Tensor, ...]:
        """Truth, input, estimate, refined regions and the step."""
        engine = self.engine
        z_0, z_lr = engine.encode(hr), engine.encode(engine.upsample(lr))
        threshold = 0.0 if torch.rand(()) < ALL_REFINED_SHARE else None
        index = engine.index(engine.quadtree(lr, threshold), z_0)
        refined = index.refined
        t = torch.randint(engine.process.schedule.num_steps, (len(lr),), device=lr.device)
        z_t = engine.process.diffuse(z_0, z_lr, t, torch.randn_like(z_0), refined)
        scaled = engine.process.scale_input(z_t, t, refined)
        z = engine.predict(scaled, t, lr=lr, z_lr=z_lr, index=index)
        return z_0, z_lr, z, refined, t

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """The same on slices of held-out patients, with the same steps each time."""
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(batch_idx)
            found = self.likelihoods(batch)
        named = {f"validation/{name}": value for name, value in found.items()}
        self.log_dict(named, sync_dist=True, batch_size=len(batch["lr"]))

    def configure_optimizers(self) -> Any:
        """AdamW over the spread."""
        settings = self.settings
        parameters = list(self.spread.parameters())
        return make_optimizer(
            parameters, settings.learning_rate, settings.steps, self.task.training
        )


def _likelihood(
    squared: Tensor, log_variance: Tensor, counted: Bool[Tensor, "..."]
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Mean of ``(e^2 / v + log v) / 2`` and of ``e^2 / v``."""
    ratio = squared / log_variance.exp()
    total = counted.sum().clamp_min(1)
    likelihood = ((ratio + log_variance) / 2 * counted).sum() / total
    return likelihood, (ratio * counted).sum() / total


@torch.no_grad()
def measure_texture(engine: Engine, source: SliceDataModule) -> Float[Tensor, "2 1 taps taps"]:
    """Filters that give white noise the correlations of what the decoder leaves out.

    Args:
        engine: with a trained ``spread``.
        source: where the training samples come from.

    Returns:
        (2, 1, TAPS, TAPS) as ``Spread.filters``: the zero-phase filter whose squared transfer is
        the power spectrum of the errors, each divided by its deviation.
    """
    spread = engine.spread
    assert spread is not None
    device = spread.filters.device
    sums = torch.zeros(2, 2 * TAPS, 2 * TAPS, dtype=torch.float64)
    counts = torch.zeros_like(sums)
    for sample in source.samples(TEXTURE_SAMPLES):
        hr, lr = sample["hr"][None].to(device), sample["lr"][None].to(device)
        with autocast(device, engine.task.training.precision):
            z_0, z_lr = engine.encode(hr), engine.encode(engine.upsample(lr))
            index = engine.index(engine.quadtree(lr), z_lr)
            last = engine.task.diffusion.num_steps - 1
            t = torch.full((1,), last, device=device)
            scaled = engine.process.scale_input(z_lr, t, index.refined)
            z = engine.predict(scaled, t, lr=lr, z_lr=z_lr, index=index)
            seen = torch.where(index.refined, z_0, z)
            error = hr - engine.decode(seen, lr)
            log_variance = spread.pixel_log_variance(seen, z_lr, index.refined)
        unit = (error / (log_variance / 2).exp()).double().cpu()
        factor = spread.compression
        for k, of in enumerate((~index.refined, index.refined)):
            counted = of.repeat_interleave(factor, 2).repeat_interleave(factor, 3).double().cpu()
            # air that the window clips has neither noise nor errors
            counted = counted * (hr.cpu() > -1)
            sums[k] += _correlations(unit * counted)
            counts[k] += _correlations(counted)
    return torch.stack([_filter_of(s / c.clamp_min(1)) for s, c in zip(sums, counts, strict=True)])


def _correlations(image: Float[Tensor, "1 1 h w"]) -> Float[Tensor, "lags lags"]:
    """Sums of products of pixels apart by -TAPS to TAPS - 1, the lag 0 first, as of an FFT."""
    height, width = image.shape[-2:]
    spectrum = torch.fft.rfft2(image[0, 0], s=(height + TAPS, width + TAPS))
    whole = torch.fft.irfft2(spectrum.abs() ** 2, s=(height + TAPS, width + TAPS))
    lags = [*range(TAPS), *range(-TAPS, 0)]
    return whole[lags][:, lags]


def _filter_of(correlations: Float[Tensor, "lags lags"]) -> Float[Tensor, "1 taps taps"]:
    """The zero-phase filter of the spectrum, cut to TAPS, its sum of squares 1."""
    lags = torch.arange(2 * TAPS, dtype=torch.float64)
    away = torch.minimum(lags, 2 * TAPS - lags) / TAPS  # far lags are few products: taper them
    taper = torch.cos(away * torch.pi / 2) ** 2
    if correlations[0, 0] <= 0:  # the region never occurs: its noise stays white
        correlations = torch.zeros_like(correlations)
        correlations[0, 0] = 1
    power = torch.fft.fft2(correlations * taper[:, None] * taper).real.clamp_min(0)
    response = torch.fft.fftshift(torch.fft.ifft2(power.sqrt()).real)
    middle = slice(TAPS - TAPS // 2, TAPS + TAPS // 2 + 1)
    cut = response[middle, middle]
    return (cut / cut.square().sum().sqrt()).float()[None]
