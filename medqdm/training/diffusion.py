"""Stage two: the two-stream transformer on frozen latents (Eq. 6 and 7 of arXiv:2503.12015)."""

import math
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from jaxtyping import Float, Int
from monai.losses import SSIMLoss
from torch import Tensor
from torch.nn import functional

from medqdm import metrics
from medqdm.config import SSIM_SIDE_PX, Task
from medqdm.diffusion.policies import spread
from medqdm.engine import Engine
from medqdm.models.modulations import Modulations
from medqdm.models.perceptual import PerceptualDistance
from medqdm.models.windows import WINDOW, WindowIndex
from medqdm.training.optimizer import check_finite, make_optimizer

# Share of the samples of a batch that see the task's s, and s = 0; the rest draws s up to 2 s.
TASK_THRESHOLD_SHARE, ZERO_THRESHOLD_SHARE = 0.7, 0.15

# Squared error below which the logarithm of it is about the error itself: 36 dB of [-1, 1]. A crop
# of air would count most without it.
LOG_FLOOR = 1e-3


def pixel_error(
    image: Float[Tensor, "b 1 h w"], truth: Float[Tensor, "b 1 h w"], kind: str
) -> Tensor:
    """Mean error of images in [-1, 1]: ``training.diffusion.image_loss``."""
    if kind == "l1":
        return functional.l1_loss(image, truth)
    squared = ((image - truth) ** 2).mean(dim=(1, 2, 3))
    if kind == "log":
        squared = torch.log1p(squared / LOG_FLOOR)
    return squared.mean()


def gradient_error(image: Float[Tensor, "b 1 h w"], truth: Float[Tensor, "b 1 h w"]) -> Tensor:
    """Mean absolute error of the differences between neighbours along y and along x, their mean."""
    error = image - truth
    return (error.diff(dim=-2).abs().mean() + error.diff(dim=-1).abs().mean()) / 2


def log_scores(
    module: pl.LightningModule,
    task: Task,
    hr: Float[Tensor, "b 1 h w"],
    *,
    sr: Float[Tensor, "b 1 h w"],
    up: Float[Tensor, "b 1 h w"],
) -> None:
    """Log PSNR, SSIM and HU error of a validation batch, and those of bicubic.

    Args:
        module: that validates.
        task: window.
        hr: the truth, in [-1, 1] as the others.
        sr: what the networks make.
        up: what bicubic interpolation makes.
    """
    window = task.hu_window
    for name, images in (("", sr), ("_bicubic", up)):
        pairs = [
            (window.denormalize(a[0].cpu().numpy()), window.denormalize(b[0].cpu().numpy()))
            for a, b in zip(images, hr, strict=True)
        ]
        values = {
            f"validation/psnr{name}": [metrics.psnr_db(a, b, window) for a, b in pairs],
            f"validation/ssim{name}": [metrics.ssim(a, b, window) for a, b in pairs],
            f"validation/mae_hu{name}": [metrics.mae_hu(a, b) for a, b in pairs],
        }
        module.log_dict(
            {key: float(np.mean(value)) for key, value in values.items()},
            prog_bar=name == "",
            sync_dist=True,
            batch_size=len(hr),
        )


class DiffusionModule(pl.LightningModule):
    """Trains the QDM of an engine; of the autoencoder at most the decoder (``image_weight``).

    Args:
        task: its ``training.diffusion`` section says how.
        engine: networks and process.
        perceptual: LPIPS, when ``perceptual_weight`` is above 0.
    """

    def __init__(self, task: Task, engine: Engine, perceptual: PerceptualDistance | None) -> None:
        super().__init__()
        self.task = task
        self.engine = engine
        self.settings = task.training.diffusion
        self.perceptual = perceptual
        self._dissimilarity = SSIMLoss(spatial_dims=2, data_range=2.0, win_size=SSIM_SIDE_PX)
        engine.autoencoder.requires_grad_(False)
        engine.autoencoder.decoder.requires_grad_(self.settings.image_weight > 0)
        if self.settings.corrector_alone and engine.qdm.corrector is not None:
            engine.qdm.requires_grad_(False)
            engine.qdm.corrector.requires_grad_(True)

    def draw_thresholds(self, count: int, device: torch.device) -> Float[Tensor, " b"]:
        """A quadtree threshold per sample: mostly s, some 0, some uniform in [0, 2 s]."""
        if self.settings.mask_training == "none":
            return torch.full((count,), -1.0, device=device)  # below any range: all cells refined
        s = self.task.quadtree.threshold
        kind = torch.rand(count, device=device)
        thresholds = 2 * s * torch.rand(count, device=device)
        thresholds[kind < TASK_THRESHOLD_SHARE + ZERO_THRESHOLD_SHARE] = 0
        thresholds[kind < TASK_THRESHOLD_SHARE] = s
        return thresholds

    def training_step(self, batch: dict[str, Any], _batch_idx: int) -> Tensor:
        """Eq. 6: each stream's squared error in what it predicts, downstream where refined.

        With a corrector its own error is added, over the whole latent as the upstream's; trained
        alone, it has that error alone.
        """
        hr, lr = batch["hr"], batch["lr"]
        engine = self.engine
        with torch.no_grad():
            z_0 = engine.encode(hr)
            z_lr = engine.encode(engine.upsample(lr))
        tree = engine.quadtree(lr, self.draw_thresholds(len(lr), lr.device))
        index = engine.index(tree, z_0)
        refined = index.refined
        t = self.draw_steps(z_0)
        z_t = engine.process.diffuse(z_0, z_lr, t, torch.randn_like(z_0), refined)
        if self.settings.mean_share > 0 and t.ndim == 1:
            is_mean = torch.rand(len(t), device=t.device) < self.settings.mean_share
            t = torch.where(is_mean, engine.process.schedule.num_steps - 1, t)
            z_t = torch.where(is_mean[:, None, None, None], z_lr, z_t)
        scaled = engine.process.scale_input(z_t, t, refined)
        vectors, condition = self._vectors(t, index), engine.condition(lr)
        up, down = engine.qdm.streams(scaled, vectors, condition, index)
        base, scale = engine.frame(scaled, t, z_lr=z_lr, noisy=refined)
        target = (z_0 - base) / scale
        loss_up = ((up.float() - target) ** 2).mean()
        squared = (down.float() - target) ** 2 * refined
        loss_down = squared.sum() / (refined.sum() * z_0.shape[1]).clamp_min(1)
        loss = self.settings.upstream_weight * loss_up + self.settings.downstream_weight * loss_down
        self.log_dict({"train/upstream": loss_up, "train/downstream": loss_down,
                       "train/density": tree.density.mean()})  # fmt: skip
        joined = torch.where(refined, down, up)
        if engine.qdm.corrector is not None:
            joined = engine.qdm.correct(joined, scaled, vectors, condition, index)
            corrected = ((joined.float() - target) ** 2).mean()
            before = 0 if self.settings.corrector_alone else loss
            loss = before + self.settings.corrector_weight * corrected
            self.log("train/corrected", corrected)
        predicted = joined.float() * scale + base
        if self.settings.image_weight > 0:
            image = self.image_loss(predicted, lr, hr)
            loss = loss + self.settings.image_weight * image
            self.log("train/image", image)
        if self.perceptual is not None:
            lpips = self.perceptual(engine.decode(predicted, lr), hr).mean()
            loss = loss + self.settings.perceptual_weight * lpips
            self.log("train/lpips", lpips)
        check_finite(loss, batch)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def draw_steps(self, z_0: Float[Tensor, "b c h w"]) -> Int[Tensor, "..."]:
        """An index per sample (b,), or in some batches one per window, as a map (b, 1, h, w)."""
        num_steps = self.engine.process.schedule.num_steps
        b, _, height, width = z_0.shape
        if torch.rand(()) >= self.settings.region_steps_share:
            t = torch.randint(num_steps, (b,), device=z_0.device)
            is_first = torch.rand(b, device=z_0.device) < self.settings.first_step_share
            return torch.where(is_first, num_steps - 1, t)
        grid = (b, height // WINDOW, width // WINDOW)
        return spread(torch.randint(num_steps, grid, device=z_0.device), z_0)

    def _vectors(self, t: Int[Tensor, "..."], index: WindowIndex) -> Tensor | Modulations:
        """Steps as the network takes them."""
        if t.ndim == 1:
            return t
        steps = torch.arange(self.engine.process.schedule.num_steps, device=t.device)
        return self.engine.qdm.modulations(steps).at_map(t, index)

    def image_loss(self, z_0: Tensor, lr: Tensor, hr: Tensor) -> Tensor:
        """Error of the decoded prediction, in a random crop of the decoder's crop size.

        The terms of gradients and SSIM are part of it.
        """
        compression = self.task.autoencoder.compression
        unit = math.lcm(compression, self.task.upscale)
        side = min(self.task.training.autoencoder.crop_px, *hr.shape[-2:]) // unit * unit
        y, x = (
            unit * int(torch.randint((length - side) // unit + 1, ())) for length in hr.shape[-2:]
        )

        def crop(image: Tensor, pixels: int) -> Tensor:
            """The crop of an image that has one pixel per so many HR pixels."""
            rows = slice(y // pixels, (y + side) // pixels)
            return image[..., rows, x // pixels : (x + side) // pixels]

        image = self.engine.decode(crop(z_0, compression), crop(lr, self.task.upscale))
        truth = crop(hr, 1)
        loss = pixel_error(image, truth, self.settings.image_loss)
        if self.settings.gradient_weight > 0:
            loss = loss + self.settings.gradient_weight * gradient_error(image, truth)
        if self.settings.ssim_weight > 0:
            with torch.autocast(image.device.type, enabled=False):  # variances of bf16 are noise
                # 0 at the window's lower end, as in metrics.ssim
                dissimilarity = self._dissimilarity(image + 1, truth + 1)
            loss = loss + self.settings.ssim_weight * dissimilarity
        return loss

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """PSNR, SSIM and HU error of whole slices, sampled in masked mode, beside bicubic."""
        hr, lr = batch["hr"], batch["lr"]
        generator = torch.Generator().manual_seed(self.task.training.seed)
        size = [s // self.engine.autoencoder.compression for s in hr.shape[-2:]]
        shape = (len(hr), self.task.autoencoder.latent_channels, *size)
        enhanced = self.engine.enhance(
            lr, lambda _k: torch.randn(shape, generator=generator).to(lr.device)
        )
        up = self.engine.upsample(lr)
        log_scores(self, self.task, hr, sr=enhanced.sr, up=up)
        self.log("validation/density", enhanced.refined.float().mean(), sync_dist=True,
                 batch_size=len(hr))  # fmt: skip
        if batch_idx == 0:
            self._log_picture(torch.cat([up[:1], enhanced.sr[:1], hr[:1]], dim=3))

    def _log_picture(self, picture: Tensor) -> None:
        for logger in self.loggers:
            if isinstance(logger, pl.loggers.TensorBoardLogger):
                logger.experiment.add_image(
                    "validation/bicubic_sr_hr", picture[0] / 2 + 0.5, self.global_step
                )

    def configure_optimizers(self) -> Any:
        """AdamW over what learns: the QDM or a part of it and, with an image loss, the decoder."""
        return make_optimizer(
            [p for p in self.engine.parameters() if p.requires_grad],
            self.settings.learning_rate,
            self.settings.steps,
            self.task.training,
        )
