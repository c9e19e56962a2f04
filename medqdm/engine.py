"""Engine: networks, process and quadtree of a task, shared by training and enhancing."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from medqdm.checkpoint import Autoencoder
from medqdm.config import DiffusionSection, Precision, Task
from medqdm.diffusion.policies import Cost, Policy, Regions, StepIndex, spread
from medqdm.diffusion.process import Process
from medqdm.diffusion.quadtree import Quadtree, on_grid, threshold_for
from medqdm.diffusion.sampler import (
    Noise,
    RegionDenoiser,
    Step,
    Variance,
    sample_regions,
    step_index,
)
from medqdm.diffusion.schedule import Schedule
from medqdm.errors import MedQDMError
from medqdm.models import halo, strips
from medqdm.models.light import LightAutoencoder
from medqdm.models.regions import RegionHeads
from medqdm.models.spread import Spread
from medqdm.models.transformer import QDM, Modulations, fit_condition
from medqdm.models.windows import PATCH, WindowIndex
from medqdm.sampling import make_policy

Image = Float[Tensor, "b 1 h w"]
Latent = Float[Tensor, "b c hl wl"]


class Enhanced(NamedTuple):
    """What the engine makes of a batch of LR images.

    Args:
        sr: (b, 1, h * upscale, w * upscale) in [-1, 1].
        refined: (b, h / 2, w / 2), True where the downstream resolved detail.
        cost: what the sampling took.
    """

    sr: Float[Tensor, "b 1 hs ws"]
    refined: Bool[Tensor, "b hc wc"]
    cost: Cost


class Drawn(NamedTuple):
    """Latents that the engine drew for a batch of LR images.

    Args:
        latents: z_0, (b, c, h', w') each; see ``Engine.draw``.
        refined: as in ``Enhanced``.
        cost: what the first one took.
    """

    latents: list[Latent]
    refined: Bool[Tensor, "b hc wc"]
    cost: Cost


class Engine(nn.Module):
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
        """What draws get their spread from; None if the weights or the task have none."""
        return self.spread if self.task.diffusion.spread else None

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

    @torch.no_grad()
    def enhance(
        self,
        lr: Image,
        noise: Noise,
        *,
        threshold: float | None = None,
        difficulty: Int[Tensor, "b hc wc"] | None = None,
    ) -> Enhanced:
        """Super-resolve LR images.

        Args:
            lr: (b, 1, h, w) in [-1, 1]; sides multiples of ``task.lr_multiple``.
            noise: draw k -> standard normal (b, c, h', w') at latent size; see ``sample``.
            threshold: quadtree threshold instead of the task's.
            difficulty: see ``quadtree``.
        """
        z_lr = self.encode(self.upsample(lr))
        drawn = self.draw(lr, z_lr, [noise], threshold=threshold, difficulty=difficulty)
        return Enhanced(self.decode(drawn.latents[0], lr), drawn.refined, drawn.cost)

    @torch.no_grad()
    def draw(
        self,
        lr: Image,
        z_lr: Latent,
        noises: Sequence[Noise],
        *,
        threshold: float | None = None,
        difficulty: Int[Tensor, "b hc wc"] | None = None,
    ) -> Drawn:
        """Sample z_0 once for each noise.

        Latents that carry no noise are the first's in all of them. Where the task's one step gives
        the best guess (``diffusion.one_step``), one noise gives that guess, in which nothing is
        drawn; several give the guess, and then a draw for each.

        Args:
            lr: (b, 1, h, w) in [-1, 1]; sides multiples of ``task.lr_multiple``.
            z_lr: (b, c, h', w'), the latent of the upsampled LR image.
            noises: one per draw, each as ``enhance`` takes it.
            threshold: quadtree threshold instead of the task's.
            difficulty: see ``quadtree``.
        """
        tree = self.quadtree(lr, threshold, difficulty)
        index = self.index(tree, z_lr)
        settings = self.task.diffusion
        plan = [(noise, settings.for_draws) for noise in noises]
        if settings.gives_guess:
            plan = [(noises[0], settings), *(plan if len(plan) > 1 else [])]
        latents: list[Latent] = []
        costs: list[Cost] = []
        for noise, section in plan:
            policy = self.policy(lr, z_lr, index, noise, tree, settings=section)
            z = self.denoise(lr, z_lr, index, noise, policy)
            latents.append(torch.where(index.refined, z, latents[0]) if latents else z)
            costs.append(policy.cost)
        return Drawn(latents, tree.refined, costs[0])

    @torch.no_grad()
    def show(
        self,
        latents: Sequence[Latent],
        lr: Image,
        *,
        z_lr: Latent,
        refined: Bool[Tensor, "b hc wc"],
        whites: Noise,
        mean: bool = False,
    ) -> tuple[Image, Float[Tensor, "b 1 hs ws"] | None]:
        """Decode draws, with the texture that latents do not hold (``diffusion.spread``).

        Args:
            latents: as ``draw`` gives them.
            lr: (b, 1, h, w) in [-1, 1].
            z_lr: (b, c, h', w'), the latent of the upsampled LR image.
            refined: as in ``Drawn``.
            whites: draw k -> standard normal noise like the image, (b, 1, h, w).
            mean: give the mean of the draws, an estimate of the posterior's, not the first latent.

        Returns:
            The first latent's image (or the mean) in [-1, 1], and the standard deviation of draws
            in HU, how much of a draw is chance; None with one latent. Texture is chance through
            and through: of the mean it is no part, to the deviation it adds what is known of it.
        """
        has_guess = self.task.diffusion.gives_guess
        spread = self.spread_of_draws
        mask = _each(refined, z_lr)
        first = self.decode(latents[0], lr)
        shown = first
        if spread is not None and not has_guess and not mean:
            shown = spread.textured(first, latents[0], z_lr, mask, whites(0))
        if len(latents) == 1:
            return shown, None
        # one image at a time (Welford, 1962): a whole slice's may be large
        draws = latents[1:] if has_guess else latents
        average, squares, left_out = (torch.zeros_like(first) for _ in range(3))
        for count, z in enumerate(draws, start=1):
            image = first if z is latents[0] else self.decode(z, lr)
            apart = image - average
            average = average + apart / count
            squares += apart * (image - average)
            if spread is not None:
                left_out = left_out + spread.pixel_log_variance(z, z_lr, mask).exp() / len(draws)
        deviation = (squares / (len(draws) - 1) + left_out).sqrt() * self.task.hu_window.hu_per_unit
        return average if mean else shown, deviation

    def policy(
        self,
        lr: Image,
        z_lr: Latent,
        index: WindowIndex,
        noise: Noise,
        tree: Quadtree | None = None,
        *,
        settings: DiffusionSection | None = None,
    ) -> Policy:
        """The task's policy for one call of ``denoise`` with the same arguments.

        Args:
            lr: (b, 1, h, w) in [-1, 1].
            z_lr: (b, c, h', w'), the latent of the upsampled LR image.
            index: the tokens that the downstream runs.
            noise: draw k -> standard normal like z_lr.
            tree: the quadtree of lr; None: made anew.
            settings: instead of the task's.
        """
        return make_policy(
            settings or self.task.diffusion,
            self.process.schedule,
            lr=lr,
            z_lr=z_lr,
            tree=tree or self.quadtree(lr),
            index=index,
            noise=noise,
            heads=self.regions,
        )

    @torch.no_grad()
    def denoise(
        self,
        lr: Image,
        z_lr: Latent,
        index: WindowIndex,
        noise: Noise,
        policy: Policy | None = None,
    ) -> Latent:
        """Sample z_0.

        Args:
            lr: (b, 1, h, w) in [-1, 1].
            z_lr: (b, c, h', w'), the latent of the upsampled LR image.
            index: the tokens that the downstream runs.
            noise: draw k -> standard normal like z_lr.
            policy: steps, and where the downstream runs at each; None: the task's.
        """
        for step in self.steps(lr, z_lr, index, noise, policy):
            z_0 = step.z_0
        return z_0

    @torch.no_grad()
    def steps(
        self,
        lr: Image,
        z_lr: Latent,
        index: WindowIndex,
        noise: Noise,
        policy: Policy | None = None,
        gamma: float | None = None,
    ) -> Iterator[Step]:
        """Sample z_0, and show each step.

        Args:
            lr: see ``denoise``, as for the next three.
            z_lr: the same.
            index: the same.
            noise: the same.
            policy: the same.
            gamma: 1 ancestral ... 0 deterministic; None: the task's.
        """
        policy = policy or self.policy(lr, z_lr, index, noise)
        if self.task.diffusion.one_step == "mean" and len(policy.steps) == 1:
            noise = _without_prior(noise, z_lr)
        yield from sample_regions(
            self._region_denoiser(lr, z_lr, index, policy.steps),
            self.process,
            z_lr,
            policy=policy,
            gamma=self.task.diffusion.gamma if gamma is None else gamma,
            noise=noise,
            refined=index.refined,
            variance=self._variance(z_lr, index.refined),
        )

    def _variance(self, z_lr: Latent, refined: Bool[Tensor, "b 1 hl wl"]) -> Variance | None:
        network = self.spread_of_draws
        if network is None:
            return None

        def variance(z_0: Latent, t: StepIndex) -> Latent:
            at = step_index(t, z_0)
            known = self.known_deviation(z_lr, at, refined)
            return network.log_variance(z_0, z_lr, refined, at, known).exp()

        return variance

    def _region_denoiser(
        self, lr: Image, z_lr: Latent, index: WindowIndex, steps: Sequence[StepIndex]
    ) -> RegionDenoiser:
        # nothing that depends on the step or the image alone is computed in the loop
        same = [t for t in steps if isinstance(t, int)]
        rows = same or range(self.process.schedule.num_steps)
        # tokens in bf16 between layers too: autocast would keep them, and all passes, in float32
        is_half = torch.is_autocast_enabled(z_lr.device.type)
        half = {n: p.bfloat16() for n, p in self.qdm.named_parameters()} if is_half else None
        modulations = self.qdm.modulations(torch.tensor(rows, device=z_lr.device))
        for_all = {t: modulations.at(k) for k, t in enumerate(rows)}
        fitted = fit_condition(lr, z_lr)

        def vectors(t: StepIndex, tokens: WindowIndex) -> Modulations:
            if isinstance(t, int):
                return for_all[t]
            return modulations.at_map(spread(t, z_lr), tokens)

        def denoise(scaled: Latent, t: StepIndex, due: Regions | None) -> Latent:
            tokens = index if due is None else self._restrict(index, due)
            return self.predict(
                scaled,
                step_index(t, z_lr),
                lr=fitted,
                z_lr=z_lr,
                index=tokens,
                noisy=index.refined,
                modulations=vectors(t, tokens),
                half=half,
            )

        return denoise

    def _restrict(self, index: WindowIndex, due: Regions) -> WindowIndex:
        refined = index.refined & spread(due, index.refined)
        return WindowIndex(refined[:, 0, ::PATCH, ::PATCH], packing=self.task.transformer.packing)


def _without_prior(noise: Noise, z_lr: Latent) -> Noise:
    """The same noise, but for the prior's, which is zero."""
    return lambda k: torch.zeros_like(z_lr) if k == 0 else noise(k)


def _each(refined: Bool[Tensor, "b hc wc"], like: Latent) -> Bool[Tensor, "b 1 hl wl"]:
    """Refined cells at the latents of the tokens that they refine, as in ``WindowIndex``."""
    tokens = on_grid(refined, like.shape[-2] // PATCH, like.shape[-1] // PATCH)
    return tokens.repeat_interleave(PATCH, 1).repeat_interleave(PATCH, 2)[:, None]


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
