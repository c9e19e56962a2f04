"""Settings of the diffusion process and of its samplers."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from medqdm.config.fields import (
    NonNegative,
    Positive,
    Probability,
    Section,
    Steps,
    require_rising,
)

Exponent = Annotated[float, Field(ge=1, le=100)]
Share = Annotated[float, Field(gt=0, lt=1)]
Index = Annotated[int, Field(ge=0, lt=10_000)]  # of a step


class TSSSection(Section):
    """``tss``: ``sampling_steps`` steps, dense at both ends, more so where the LR image varies.

    Where both ranges are points, all regions take the same steps.
    """

    exponent: Annotated[tuple[Exponent, Exponent], AfterValidator(require_rising)] = (1.0, 2.0)
    """n of the flattest and of the most detailed regions; 1: even steps, more: denser ends."""
    transition: Annotated[tuple[Share, Share], AfterValidator(require_rising)] = (0.4, 0.6)
    """a of the same: the share of the way at which early steps pass into late ones."""


class GainSection(Section):
    """``gain``: regions whose estimate changes little skip steps and freeze."""

    threshold: NonNegative = 0.05
    """Change of a region's estimate in a step, as a share of its difference from z_lr, below which
    it runs at every fourth step only, and freezes the second time; 0: all run at all steps."""
    source: Literal["change", "regressor"] = "change"
    """change: as above. regressor: the gain that a trained network expects (``medqdm train-gain``),
    measured with ``expected``."""
    expected: NonNegative = 0.02
    """The threshold of ``regressor``: tenths of a decibel of a region's error, or of its edges'
    similarity, through tanh."""
    skips: tuple[Steps, Steps, Steps, Steps] = (1, 2, 3, 4)
    """Steps until a region runs again: from 4 thresholds of gain on, from 2, from 1, below."""


class GroupsSection(Section):
    """``groups``: regions start late where a coarse estimate is good; has steps of its own."""

    steps: Annotated[
        tuple[Annotated[tuple[Index, ...], Field(max_length=10_000)], ...], Field(max_length=100)
    ] = ((14, 11, 8, 5, 2, 0), (9, 5, 2, 0), (3, 0))
    """Schedule indices of the groups, hardest first: each falls to 0, each starts later."""
    rho: Positive = 0.25
    """Largest admissible bias of a start, as a share of the noise there."""
    confidence: Literal["upstream", "level", "head"] = "upstream"
    """What a region's error is told from: how far the upstream's first estimate lies from z_lr, the
    mean share of quadtree levels on which its cells are split, or a network that was trained to
    tell (``medqdm train-gain``)."""
    error: Positive = 1.0
    """Root mean square latent error of the coarse estimate per unit of that; of what ``head``
    tells, 1 is true."""

    @model_validator(mode="after")
    def _steps_fall(self) -> "GroupsSection":
        for steps in self.steps:
            if not steps or steps[-1] != 0 or list(steps) != sorted(set(steps), reverse=True):
                raise ValueError(f"steps must fall to 0 in each group, got {list(steps)}")
        starts = [steps[0] for steps in self.steps]
        if not starts or starts != sorted(starts, reverse=True):
            raise ValueError(f"steps must start later from group to group, got starts {starts}")
        return self


class SamplerSection(Section):
    """In which regions the downstream runs at which steps. A region is a window of 8 x 8 tokens."""

    name: Literal["uniform", "tss", "gain", "groups", "random", "upstream"] = "uniform"
    """uniform: all regions at all of the steps. random and upstream (no region ever) are the
    controls that the others must beat."""
    tss: TSSSection = TSSSection()
    gain: GainSection = GainSection()
    groups: GroupsSection = GroupsSection()
    random_share: Probability = 0.25
    """``random``: share of the regions that run at each step."""
    correlation_mm: NonNegative = 20.0
    """Distance of slices, along their normal, at which their noise is independent; nearer ones
    share some of it (``diffusion.noise``). 0: each slice has noise of its own."""
    steady: Literal["none", "max", "median"] = "none"
    """What a cell takes of its own slice's quadtree and the two beside it, so that refined regions
    do not flicker (``diffusion.quadtree.steady``). ``groups`` by ``level`` follow it; by another
    confidence each slice is grouped by itself."""


STEPS_OF_DRAWS = 4  # where one step is the best guess


class DiffusionSection(Section):
    """The residual-shift process and how it is sampled."""

    num_steps: Annotated[int, Field(ge=2, le=10_000)] = 15
    """T, the steps of the training schedule."""
    kappa: Positive = 2.0
    """Noise strength."""
    min_noise_level: Positive = 0.04
    """m: the first sqrt(eta) is min(m / kappa, m)."""
    max_sqrt_eta: Share = 0.99
    """The last sqrt(eta)."""
    power: Annotated[float, Field(gt=0, le=100)] = 0.3
    """p of the schedule's spacing."""
    sampling_steps: Steps | None = None
    """Steps taken by the sampler, spread evenly and always with the first and last; None: all."""
    one_step: Literal["draw", "mean"] = "draw"
    """What a single sampling step starts from: a draw of the prior, or its mean, z_LR: the
    network's best guess, on which chance has no influence (train with
    ``training.diffusion.mean_share``). Draws beside it, whose deviation or mean is asked for,
    take 4 steps."""
    residual_deviation: Positive | None = None
    """Root mean square of z_0 - z_lr where refined, which ``preconditioned`` networks start from;
    None: measured before stage two."""
    gamma: Probability = 1.0
    """1: ancestral sampling; 0: deterministic after the first noise."""
    spread: bool = True
    """Draws vary as much as the model errs, where the weights carry networks that know how much
    (``medqdm train-spread``): each step's noise accounts for the error of its estimate, and the
    picture gets the texture that latents do not hold. False: the ancestral steps alone."""
    sampler: SamplerSection = SamplerSection()
    consistency: Annotated[int, Field(ge=0, le=1000)] = 0
    """Iterations of back-projection that draw the output, reduced, nearer to the input
    (``diffusion.consistency``); 0: none."""
    conserve_hu: bool = True
    """Flat regions keep the mean HU of the input (``diffusion.conservation``)."""
    published_masking: bool = False
    """True: one input scale for all pixels and the ancestral mean outside the refined regions, as
    published weights expect; False: both follow the mask."""

    @property
    def gives_guess(self) -> bool:
        """Whether a slice's output is the best guess of one step, in which nothing is drawn."""
        return self.one_step == "mean" and self.sampling_steps == 1

    @property
    def for_draws(self) -> "DiffusionSection":
        """These settings with steps enough to draw."""
        if not self.gives_guess:
            return self
        return self.model_copy(update={"sampling_steps": min(STEPS_OF_DRAWS, self.num_steps)})

    def told(self, *, mean: bool, has_noise: bool) -> str:
        """What is done for an output, in words.

        Args:
            mean: whether the output is the mean of draws.
            has_noise: whether draws get the spread of the model's errors.
        """
        if self.gives_guess and not mean:
            return "one step from the prior's mean"
        steps = self.for_draws.sampling_steps or self.num_steps
        noise = ", noise as strong as the model's errors" if has_noise and not mean else ""
        return f"steps {steps}, gamma {self.gamma:g}{noise}"

    @model_validator(mode="after")
    def _groups_fit(self) -> "DiffusionSection":
        highest = max(steps[0] for steps in self.sampler.groups.steps)
        if self.sampler.name == "groups" and highest >= self.num_steps:
            raise ValueError(
                f"sampler.groups.steps must be below num_steps = {self.num_steps}, got {highest}"
            )
        return self
