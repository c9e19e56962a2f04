"""Stage one: the KL-VAE, with optional perceptual and adversarial terms."""

from typing import Any

import pytorch_lightning as pl
import torch
from monai.losses import PatchAdversarialLoss
from monai.networks.nets import PatchDiscriminator
from torch import Tensor, nn
from torch.nn import functional

from medqdm.build import Autoencoder
from medqdm.config import Task
from medqdm.models.light import LightAutoencoder
from medqdm.models.perceptual import PerceptualDistance
from medqdm.training.optimizer import check_finite, make_optimizer


class AutoencoderModule(pl.LightningModule):
    """Trains an autoencoder: L1 + KL (+ LPIPS) (+ PatchGAN with hinge loss).

    Args:
        task: its ``training.autoencoder`` section says how.
        autoencoder: the network to train.
        perceptual: LPIPS, when ``perceptual_weight`` is above 0.
    """

    def __init__(
        self, task: Task, autoencoder: Autoencoder, perceptual: PerceptualDistance | None
    ) -> None:
        super().__init__()
        self.task = task
        self.settings = task.training.autoencoder
        self.autoencoder = autoencoder
        self.perceptual = perceptual
        self.discriminator: nn.Module | None = None
        self.adversarial: nn.Module | None = None
        if self.settings.adversarial_weight > 0:
            self.discriminator = PatchDiscriminator(
                spatial_dims=2, in_channels=1, channels=64, num_layers_d=3
            )
            self.adversarial = PatchAdversarialLoss(criterion="hinge")

    def _images(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """What is encoded, and what decoding it should give.

        Bicubic-upsampled LR takes the place of some HR images: the encoder meets it in stage two.
        """
        hr, lr = batch["hr"], batch["lr"]
        count = round(len(hr) * self.settings.lr_share)
        if count == 0:
            return hr, hr
        images = torch.cat([_upsample(lr[:count], hr), hr[count:]])
        return images, hr if isinstance(self.autoencoder, LightAutoencoder) else images

    def _decode(self, z: Tensor, lr: Tensor) -> Tensor:
        if isinstance(self.autoencoder, LightAutoencoder):
            return self.autoencoder.decode(z, lr)
        return self.autoencoder.decode(z)

    def training_step(self, batch: dict[str, Any], _batch_idx: int) -> Tensor:
        """Loss of one batch."""
        image, target = self._images(batch)
        mean, log_variance = self.autoencoder.moments(image)
        z = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
        reconstruction = self._decode(z, batch["lr"]).float()
        mean, log_variance = mean.float(), log_variance.float()
        kl = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).sum(dim=(1, 2, 3)).mean()
        l1 = functional.l1_loss(reconstruction, target)
        loss = l1 + self.settings.kl_weight * kl
        self.log_dict({"train/l1": l1, "train/kl": kl})
        if self.perceptual is not None:
            perceptual = self.perceptual(reconstruction, target).mean()
            loss = loss + self.settings.perceptual_weight * perceptual
            self.log("train/lpips", perceptual)
        if self.discriminator is not None and self.global_step >= self.settings.adversarial_start:
            loss = loss + self._adversarial_loss(reconstruction, target)
        check_finite(loss, batch)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def _adversarial_loss(self, reconstruction: Tensor, image: Tensor) -> Tensor:
        """Generator's and discriminator's hinge loss, each with a gradient to its own side only.

        Adam scales each parameter by itself, so one optimiser over both sides equals two.
        """
        assert self.discriminator is not None
        assert self.adversarial is not None
        self.discriminator.requires_grad_(False)
        fooled = self.discriminator(reconstruction)[-1]
        generator = self.adversarial(fooled, target_is_real=True, for_discriminator=False)
        self.discriminator.requires_grad_(True)
        fake = self.discriminator(reconstruction.detach())[-1]
        real = self.discriminator(image)[-1]
        discriminator = 0.5 * (
            self.adversarial(fake, target_is_real=False, for_discriminator=True)
            + self.adversarial(real, target_is_real=True, for_discriminator=True)
        )
        self.log_dict({"train/generator": generator, "train/discriminator": discriminator})
        total: Tensor = self.settings.adversarial_weight * generator + discriminator
        return total

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """PSNR of HR images and of upsampled LR through encoder and decoder.

        Upsampled LR is compared with what decoding it should give, see ``_images``.
        """
        hr, lr = batch["hr"], batch["lr"]
        up = _upsample(lr, hr)
        light = isinstance(self.autoencoder, LightAutoencoder)
        for name, image, target in (("hr", hr, hr), ("lr", up, hr if light else up)):
            again = self._decode(self.autoencoder.encode(image), lr).float().clamp(-1, 1)
            mse = ((again - target) ** 2).mean(dim=(1, 2, 3))
            psnr = (10 * torch.log10(4 / mse)).mean()
            self.log(f"validation/psnr_{name}", psnr, prog_bar=True, sync_dist=True,
                     batch_size=len(hr))  # fmt: skip
            if name == "hr" and batch_idx == 0 and isinstance(self.logger, pl.loggers.Logger):
                self._log_picture(torch.cat([image[:1], again[:1]], dim=3))

    def _log_picture(self, picture: Tensor) -> None:
        for logger in self.loggers:
            if isinstance(logger, pl.loggers.TensorBoardLogger):
                logger.experiment.add_image(
                    "validation/hr_reconstruction", picture[0] / 2 + 0.5, self.global_step
                )

    def configure_optimizers(self) -> Any:
        """AdamW over the autoencoder and, if there is one, the discriminator."""
        parameters = [p for p in self.parameters() if p.requires_grad]
        return make_optimizer(
            parameters, self.settings.learning_rate, self.settings.steps, self.task.training
        )


def _upsample(lr: Tensor, hr: Tensor) -> Tensor:
    return functional.interpolate(lr, size=hr.shape[-2:], mode="bicubic").clamp(-1, 1)
