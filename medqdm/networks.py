"""Networks: those of a task with process and quadtree: pixels to latents, one prediction, back."""

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from medqdm.build import Autoencoder
from medqdm.config import Task
from medqdm.diffusion.process import Process
from medqdm.diffusion.quadtree import Quadtree, threshold_for
from medqdm.diffusion.schedule import Schedule
from medqdm.errors import MedQDMError
from medqdm.models import halo, strips
from medqdm.models.light import LightAutoencoder
from medqdm.models.modulations import Modulations
from medqdm.models.regions import RegionHeads
from medqdm.models.spread import Spread
from medqdm.models.transformer import QDM
from medqdm.models.windows import WindowIndex

Image = Float[Tensor, "b 1 h w"]
Latent = Float[Tensor, "b c hl wl"]


class Networks(nn.Module):
    """A task's networks with what lies between them; pixels are [-1, 1], latents unit variance.

    Args:
        task: settings, with ``autoencoder.latent_scale`` measured.
        autoencoder: the KL-VAE.
        qdm: the transformer.
        regions: networks that tell what regions bring, for samplers that ask.
        spread: networks that tell how far estimates are off, for draws that vary as much.
    """

    def __init__(
        self,
        task: Task,
        autoencoder: Autoencoder,
        qdm: QDM,
        regions: RegionHeads | None = None,
        spread: Spread | None = None,
    ) -> None:
        super().__init__()
        self.task = task
        self.autoencoder = autoencoder
        self.qdm = qdm
        self.regions = regions
        self.spread = spread
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
        wide = _channels_last(image.expand(-1, channels, -1, -1))
        if isinstance(self.autoencoder, LightAutoencoder) and not torch.is_grad_enabled():
            z = halo.encode(self.autoencoder, wide)
        else:
            z = self.autoencoder.encode(wide)
        z = z.float().contiguous()
        return z * self.latent_scale(z)

    def decode(self, z: Latent, lr: Image) -> Image:
        """Latents to pixels in [-1, 1], float32; more image channels than one are averaged."""
        unscaled = _channels_last(z / self.latent_scale(z))
        if isinstance(self.autoencoder, LightAutoencoder):
            condition = self.condition(lr)
            if torch.is_grad_enabled():
                image = self.autoencoder.decode(unscaled, condition)
            else:
                image = halo.decode(self.autoencoder, unscaled, condition)
        elif torch.is_grad_enabled():
            image = self.autoencoder.decode(unscaled)
        else:
            image = strips.decode(self.autoencoder, unscaled)
        return image.float().mean(dim=1, keepdim=True).clamp(-1, 1)

    def quadtree(
        self,
        lr: Image,
        threshold: float | Float[Tensor, " b"] | None = None,
        difficulty: Int[Tensor, "b hc wc"] | None = None,
    ) -> Quadtree:
        """The quadtree of LR images.

        Args:
            lr: (b, 1, h, w) in [-1, 1].
            threshold: instead of the task's.
            difficulty: (b, h / 2, w / 2) levels on which each cell is split, where the images alone
                do not decide it (``diffusion.quadtree.steady``); cells split on all are refined.
        """
        tree = quadtree_of(self.task, lr, threshold)
        if difficulty is not None:
            tree.difficulty = difficulty
        return tree

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
        t: Int[Tensor, "..."],
        *,
        lr: Image,
        z_lr: Latent,
        index: WindowIndex,
        noisy: Bool[Tensor, "b 1 hl wl"] | None = None,
        modulations: Modulations | None = None,
        half: Mapping[str, Tensor] | None = None,
    ) -> Latent:
        """One call of the network: z_0 from the scaled z_t.

        Args:
            scaled: z_t as ``Process.scale_input`` gives it.
            t: schedule index per slice (b,), or per latent (b, 1, h', w').
            lr: (b, 1, h, w) in [-1, 1].
            z_lr: latent of the upsampled LR image.
            index: the tokens that the downstream runs.
            noisy: regions that carry noise; None: those that the index refines.
            modulations: the network's vectors for t, where they are known; needed if t is a map.
            half: the network's weights in bf16, to run all of it in bf16; without them autocast,
                where it is on, runs its matrix products in bf16.
        """
        noisy = index.refined if noisy is None else noisy
        vectors = t if modulations is None else modulations
        if half is None:
            out = self.qdm(scaled, vectors, self.condition(lr), index, noisy)
        else:
            if isinstance(vectors, Modulations):
                vectors = vectors.to(torch.bfloat16)
            inputs = (scaled.bfloat16(), vectors, self.condition(lr).bfloat16(), index, noisy)
            with torch.autocast(scaled.device.type, enabled=False):
                out = functional_call(self.qdm, dict(half), inputs)
        base, scale = self.frame(scaled, t, z_lr=z_lr, noisy=noisy)
        return out.float() * scale + base

    def frame(
        self, scaled: Latent, t: Int[Tensor, "..."], *, z_lr: Latent, noisy: Bool[Tensor, "..."]
    ) -> tuple[Latent, Latent]:
        """Base and scale with which the network's output means ``z_0 = base + scale * output``.

        Args:
            scaled: z_t as ``Process.scale_input`` gives it.
            t: schedule index per slice or per latent.
            z_lr: latent of the upsampled LR image.
            noisy: (b, 1, h', w') regions that carry noise.
        """
        prediction = self.task.transformer.prediction
        if prediction == "preconditioned":
            return self.process.guess(scaled, z_lr, t, self.residual_deviation, noisy)
        base = z_lr if prediction == "residual" else torch.zeros_like(z_lr)
        return base, torch.ones_like(z_lr)

    @property
    def spread_of_draws(self) -> Spread | None:
        """What draws get their spread from; None if the weights or the task have none.

        A sampler without chance (gamma 0) has none, and a single step stays what it is.
        """
        settings = self.task.diffusion
        draws = settings.spread and settings.gamma > 0 and settings.for_draws.sampling_steps != 1
        return self.spread if draws else None

    def known_deviation(
        self, z_lr: Latent, t: Int[Tensor, "..."], refined: Bool[Tensor, "b 1 hl wl"]
    ) -> Latent:
        """Deviation of z_0 around what z_t alone says of it, see ``Process.guess``."""
        deviation = self.task.diffusion.residual_deviation or 1.0
        return self.process.guess(z_lr, z_lr, t, deviation, refined)[1]

    @property
    def residual_deviation(self) -> float:
        """Root mean square of ``z_0 - z_lr`` where refined."""
        deviation = self.task.diffusion.residual_deviation
        if deviation is None:
            raise MedQDMError(
                f"task {self.task.name}: diffusion.residual_deviation must be a number, got none; "
                "train stage two or set it"
            )
        return deviation


def _channels_last(image: Tensor) -> Tensor:
    return image.contiguous(memory_format=torch.channels_last)


def quadtree_of(
    task: Task, lr: Image, threshold: float | Float[Tensor, " b"] | None = None
) -> Quadtree:
    """The quadtree of LR images as a task wants it; see ``Engine.quadtree``."""
    settings = task.quadtree
    if threshold is None:
        threshold = threshold_for(lr, settings.threshold, settings.noise_factor)
    return Quadtree(lr, threshold, num_levels=settings.num_levels, inclusive=settings.inclusive)
