"""Engine: networks, process and quadtree of a task, shared by training and enhancing."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from medqdm.checkpoint import Autoencoder
from medqdm.config import Precision, Task
from medqdm.diffusion.process import Process
from medqdm.diffusion.quadtree import Quadtree, threshold_for
from medqdm.diffusion.sampler import Noise, sample
from medqdm.diffusion.schedule import Schedule
from medqdm.errors import MedQDMError
from medqdm.models.light import LightAutoencoder
from medqdm.models.transformer import QDM, Modulations, fit_condition
from medqdm.models.windows import WindowIndex

Image = Float[Tensor, "b 1 h w"]
Latent = Float[Tensor, "b c hl wl"]


class Enhanced(NamedTuple):
    """What the engine makes of a batch of LR images.

    Args:
        sr: (b, 1, h * upscale, w * upscale) in [-1, 1].
        refined: (b, h / 2, w / 2), True where the downstream ran and noise was drawn.
    """

    sr: Float[Tensor, "b 1 hs ws"]
    refined: Bool[Tensor, "b hc wc"]


class Engine(nn.Module):
    """A task's networks with what lies between them; pixels are [-1, 1], latents unit variance.

    Args:
        task: settings, with ``autoencoder.latent_scale`` measured.
        autoencoder: the KL-VAE.
        qdm: the transformer.
    """

    def __init__(self, task: Task, autoencoder: Autoencoder, qdm: QDM) -> None:
        super().__init__()
        self.task = task
        self.autoencoder = autoencoder
        self.qdm = qdm
        settings = task.diffusion
        self.process = Process(
            Schedule(
                num_steps=settings.num_steps,
                kappa=settings.kappa,
                min_noise_level=settings.min_noise_level,
                max_sqrt_eta=settings.max_sqrt_eta,
                power=settings.power,
            ),
            published_masking=settings.published_masking,
        )

    def latent_scale(self, z: Latent) -> Float[Tensor, "..."]:
        """Multiplier that gives latents unit variance, shaped to multiply ``z``."""
        scale = self.task.autoencoder.latent_scale
        if scale is None:
            raise MedQDMError(
                f"task {self.task.name}: autoencoder.latent_scale must be a number, got none; "
                "train stage one first or set it"
            )
        return torch.as_tensor(scale, dtype=z.dtype, device=z.device).reshape(-1, 1, 1)

    def upsample(self, lr: Image) -> Float[Tensor, "b 1 hs ws"]:
        """Bicubic interpolation by the task's factor, pixel-area convention, clamped to [-1, 1]."""
        size = (lr.shape[-2] * self.task.upscale, lr.shape[-1] * self.task.upscale)
        up = functional.interpolate(lr, size=size, mode="bicubic", align_corners=False)
        return up.clamp(-1, 1)

    def encode(self, image: Image) -> Latent:
        """Posterior mode of the KL-VAE, scaled to unit variance, float32."""
        channels = self.task.autoencoder.image_channels
        z = self.autoencoder.encode(_channels_last(image.expand(-1, channels, -1, -1)))
        z = z.float().contiguous()
        return z * self.latent_scale(z)

    def decode(self, z: Latent, lr: Image) -> Image:
        """Latents to pixels in [-1, 1], float32; more image channels than one are averaged."""
        unscaled = _channels_last(z / self.latent_scale(z))
        if isinstance(self.autoencoder, LightAutoencoder):
            image = self.autoencoder.decode(unscaled, self.condition(lr))
        else:
            image = self.autoencoder.decode(unscaled)
        return image.float().mean(dim=1, keepdim=True).clamp(-1, 1)

    def quadtree(self, lr: Image, threshold: float | Float[Tensor, " b"] | None = None) -> Quadtree:
        """The quadtree of LR images; the threshold is the task's unless given."""
        settings = self.task.quadtree
        if threshold is None:
            threshold = threshold_for(lr, settings.threshold, settings.noise_factor)
        return Quadtree(lr, threshold, num_levels=settings.num_levels, inclusive=settings.inclusive)

    def condition(self, lr: Image) -> Latent:
        """The LR image with as many channels as the networks were trained with."""
        return lr.expand(-1, self.task.autoencoder.image_channels, -1, -1)

    def index(self, tree: Quadtree, z_lr: Latent) -> WindowIndex:
        """The tokens that the downstream runs, packed as the task's weights were trained."""
        height, width = z_lr.shape[-2:]
        refined = tree.at(height // 2, width // 2)
        return WindowIndex(refined, packing=self.task.transformer.packing)

    def predict(
        self,
        scaled: Latent,
        t: Int[Tensor, " b"] | Modulations,
        *,
        lr: Image,
        z_lr: Latent,
        index: WindowIndex,
    ) -> Latent:
        """One call of the network: z_0 from the scaled z_t."""
        out = self.qdm(scaled, t, self.condition(lr), index).float()
        return out + z_lr if self.task.transformer.prediction == "residual" else out

    @torch.no_grad()
    def enhance(self, lr: Image, noise: Noise, *, threshold: float | None = None) -> Enhanced:
        """Super-resolve LR images.

        Args:
            lr: (b, 1, h, w) in [-1, 1]; sides multiples of ``task.lr_multiple``.
            noise: draw k -> standard normal (b, c, h', w') at latent size; see ``sample``.
            threshold: quadtree threshold instead of the task's.
        """
        z_lr = self.encode(self.upsample(lr))
        tree = self.quadtree(lr, threshold)
        z_0 = self.denoise(lr, z_lr, self.index(tree, z_lr), noise)
        return Enhanced(self.decode(z_0, lr), tree.refined)

    @torch.no_grad()
    def denoise(self, lr: Image, z_lr: Latent, index: WindowIndex, noise: Noise) -> Latent:
        """Sample z_0 along the task's steps.

        Args:
            lr: (b, 1, h, w) in [-1, 1].
            z_lr: (b, c, h', w'), the latent of the upsampled LR image.
            index: the tokens that the downstream runs.
            noise: draw k -> standard normal like z_lr.
        """
        settings = self.task.diffusion
        steps = self.process.schedule.subset(settings.sampling_steps)
        # nothing that depends on the step or the image alone is computed in the loop
        modulations = self.qdm.modulations(torch.tensor(steps, device=z_lr.device))
        at = {t: modulations.at(k) for k, t in enumerate(steps)}
        fitted = fit_condition(lr, z_lr)
        for step in sample(
            lambda scaled, t: self.predict(scaled, at[t], lr=fitted, z_lr=z_lr, index=index),
            self.process,
            z_lr,
            steps=steps,
            gamma=settings.gamma,
            noise=noise,
            refined=index.refined,
        ):
            z_0 = step.z_0
        return z_0


def _channels_last(image: Tensor) -> Tensor:
    return image.contiguous(memory_format=torch.channels_last)


def is_bf16_fast(device: torch.device) -> bool:
    """Whether the device multiplies bf16 in hardware (CUDA from Ampere on; AVX-512 BF16; AMX)."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        capabilities = torch.cpu.get_capabilities()
        return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    return False


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """The autocast context of a precision; ``auto`` is bf16 where the device has it."""
    enabled = precision == "bf16" or (precision == "auto" and is_bf16_fast(device))
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)
