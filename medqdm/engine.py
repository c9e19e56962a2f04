"""Engine: a task's networks as a sampler, from LR images to best guess, draws and deviation."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from medqdm.config import DiffusionSection
from medqdm.diffusion.policies import Cost, Policy, Regions, StepIndex, spread
from medqdm.diffusion.quadtree import Quadtree, on_grid
from medqdm.diffusion.sampler import (
    Noise,
    RegionDenoiser,
    Step,
    Variance,
    sample_regions,
    step_index,
)
from medqdm.models.modulations import Modulations
from medqdm.models.transformer import fit_condition
from medqdm.models.windows import PATCH, WindowIndex
from medqdm.networks import Image, Latent, Networks
from medqdm.sampling import make_policy


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


class Engine(Networks):
    """A task's networks that sample: policies, steps, draws, and what is shown of them.

    The arguments are those of ``Networks``.
    """

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
        white: Callable[[], Float[Tensor, "b 1 hs ws"]],
        mean: bool = False,
    ) -> tuple[Image, Float[Tensor, "b 1 hs ws"] | None]:
        """Decode draws, with the texture that latents do not hold (``diffusion.spread``).

        Args:
            latents: as ``draw`` gives them.
            lr: (b, 1, h, w) in [-1, 1].
            z_lr: (b, c, h', w'), the latent of the upsampled LR image.
            refined: as in ``Drawn``.
            white: gives standard normal noise like the image, for the texture of the first.
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
        gamma = self.task.diffusion.gamma
        if spread is not None and not has_guess and not mean:
            shown = spread.textured(first, latents[0], z_lr, mask, white(), gamma)
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
                variance = spread.pixel_log_variance(z, z_lr, mask).exp()
                left_out = left_out + gamma**2 * variance / len(draws)
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
    ) -> Iterator[Step]:
        """Sample z_0, and show each step.

        Args:
            lr: see ``denoise``, as for the next three.
            z_lr: the same.
            index: the same.
            noise: the same.
            policy: the same.
        """
        policy = policy or self.policy(lr, z_lr, index, noise)
        if self.task.diffusion.one_step == "mean" and len(policy.steps) == 1:
            noise = _without_prior(noise, z_lr)
        yield from sample_regions(
            self._region_denoiser(lr, z_lr, index, policy.steps),
            self.process,
            z_lr,
            policy=policy,
            gamma=self.task.diffusion.gamma,
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
