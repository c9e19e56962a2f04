"""Policies: at which steps the downstream runs in which regions.

A region is a downstream window. The upstream runs at every step everywhere; a policy says where the
downstream runs too. The grid of regions is (b, rows, columns), row by row over the latents.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from medqdm.diffusion.filters import gaussian_blur, high_pass, local_variance
from medqdm.diffusion.schedule import Schedule

Latent = Float[Tensor, "b c h w"]
Refined = Bool[Tensor, "b 1 h w"]
Regions = Bool[Tensor, "b rows columns"]
StepIndex = int | Int[Tensor, "b rows columns"]
Grid = tuple[int, int]

GAIN_FLOOR = 0.02  # rms of unit-variance latents; a change against less says nothing
VARIANCE_SIDE_PX, VARIANCE_BLUR_PX, VARIANCE_TOP = 7, 3.0, 0.99  # of the LR image, under ``tss``


@dataclass
class Cost:
    """What sampling a batch took.

    Args:
        evaluations: calls of the network; each runs the upstream everywhere.
        regions: per step of the policy (b,), regions in which the downstream ran.
        tokens: per step of the policy (b,), tokens for which it ran.
    """

    evaluations: int = 0
    regions: list[Int[Tensor, " b"]] = field(default_factory=list)
    tokens: list[Int[Tensor, " b"]] = field(default_factory=list)

    @property
    def region_steps(self) -> Int[Tensor, " b"]:
        """Regions that ran, per slice, summed over the steps."""
        return torch.stack(self.regions).sum(dim=0)

    @property
    def token_steps(self) -> Int[Tensor, " b"]:
        """Tokens that ran, per slice, summed over the steps."""
        return torch.stack(self.tokens).sum(dim=0)


class Policy:
    """All regions at all steps: ``uniform`` and ``tss``; the base of the others.

    A policy serves one call of the sampler. The first and last step of each region are those of
    ``steps``; a region that does not run keeps its last estimate, or, before it has run at all,
    takes the upstream's.

    Args:
        steps: schedule indices, falling from T - 1; or a map of them per region for each step, on
            which an index that is repeated changes nothing.
        tokens: (b, rows, columns) tokens that each region runs downstream, 0 for none.

    Attributes:
        cost: filled while sampling.
    """

    def __init__(self, steps: Sequence[StepIndex], tokens: Int[Tensor, "b rows columns"]) -> None:
        self.steps = steps
        self.tokens = tokens
        self.cost = Cost()

    def begin(self, look: Callable[[], Latent]) -> None:
        """Called once before the first step; ``look()`` is an upstream-only call at that step."""

    def due(self, k: int) -> Regions | None:
        """The regions to run at the k-th step, counted from 0; None: all."""

    def observe(self, k: int, z_0: Latent) -> None:
        """Called after the k-th step with all regions' estimates."""

    def record(self, due: Regions | None) -> None:
        """Add a step to the cost."""
        tokens = self.tokens if due is None else self.tokens * due
        self.cost.regions.append((tokens > 0).sum(dim=(1, 2)))
        self.cost.tokens.append(tokens.sum(dim=(1, 2)))


class UpstreamOnly(Policy):
    """A control: the downstream never runs."""

    def due(self, k: int) -> Regions:  # noqa: ARG002  (no step differs)
        """None of the regions."""
        return torch.zeros_like(self.tokens, dtype=torch.bool)


class Random(Policy):
    """A control: as many regions as asked for, drawn anew at each step.

    Args:
        steps: schedule indices, falling from T - 1.
        tokens: see ``Policy``.
        counts: per step (b,), regions to run; ``Cost.regions`` of another policy's run on the same
            slices gives its region-steps.
        score: k -> (b, rows, columns) random numbers; those with the highest run at the k-th step.
    """

    def __init__(
        self,
        steps: Sequence[int],
        tokens: Int[Tensor, "b rows columns"],
        *,
        counts: Sequence[Int[Tensor, " b"]],
        score: Callable[[int], Float[Tensor, "b rows columns"]],
    ) -> None:
        super().__init__(steps, tokens)
        self._counts = counts
        self._score = score

    def due(self, k: int) -> Regions:
        """The regions with the highest scores among those that have tokens."""
        score = self._score(k).masked_fill(self.tokens == 0, -torch.inf).flatten(1)
        rank = score.argsort(dim=1, descending=True).argsort(dim=1)
        chosen = rank < self._counts[k][:, None]
        return chosen.reshape(self.tokens.shape) & (self.tokens > 0)


class Gain(Policy):
    """``gain``: regions whose estimate changes little skip steps, and freeze when it stays so.

    After each run of a region, with its estimate z_0, the one before (at first z_lr), and rms over
    its refined latents (a training-free form of AdaDiffSR's timestep sampling)::

        g = rms(z_0 - before) / (rms(z_0 - z_lr) + c)

    In the later half of the schedule g is at least that of the high-pass parts, so that a region
    whose edges still move goes on. It runs next after the first of ``skips`` if g >= 4 threshold,
    the second if g >= 2 threshold, the third if g >= threshold, else the last; twice in a row below
    the threshold freezes it. All that are not frozen run at the last step.

    Args:
        steps: schedule indices, falling from T - 1.
        tokens: see ``Policy``.
        z_lr: latent of the upsampled LR image.
        refined: regions that carry noise.
        threshold: smallest gain that is worth a step, 0 or more; 0 runs all regions at all steps.
        skips: steps from a run to the next, for much to little gain.
        gain: (k, z_0, the estimate before) -> (b, rows, columns), to be used instead of g.
    """

    def __init__(
        self,
        steps: Sequence[int],
        tokens: Int[Tensor, "b rows columns"],
        *,
        z_lr: Latent,
        refined: Refined,
        threshold: float,
        skips: Sequence[int] = (1, 2, 3, 4),
        gain: Callable[[int, Latent, Latent], Float[Tensor, "b rows columns"]] | None = None,
    ) -> None:
        super().__init__(steps, tokens)
        self._indices = steps
        self._gain = gain or self._change
        # with no threshold nothing is ever below it, whatever the gain
        self._skips = torch.tensor(skips if threshold > 0 else [1] * 4, device=z_lr.device)
        self._freezes = threshold > 0
        self._z_lr, self._refined = z_lr, refined
        self._limits = threshold * torch.tensor([1.0, 2.0, 4.0], device=z_lr.device)
        self._before = z_lr
        self._next = torch.zeros_like(tokens)
        self._low_in_a_row = torch.zeros_like(tokens)

    def due(self, k: int) -> Regions:
        """Those whose turn it is and that are not frozen."""
        due = self._next <= k if k + 1 < len(self.steps) else torch.ones_like(self.tokens).bool()
        return due & (self._low_in_a_row < 2)

    def observe(self, k: int, z_0: Latent) -> None:
        """Rate the regions that ran."""
        ran = self.due(k)
        gain = self._gain(k, z_0, self._before)
        below = (gain[..., None] < self._limits).sum(dim=-1)  # 0 ... 3: of the three limits
        low = (below == len(self._limits)) * (self._low_in_a_row + 1) * self._freezes
        self._low_in_a_row = torch.where(ran, low, self._low_in_a_row)
        self._next = torch.where(ran, k + self._skips[below], self._next)
        self._before = z_0

    def _change(self, k: int, z_0: Latent, before: Latent) -> Float[Tensor, "b rows columns"]:
        gain = self._relative(z_0, before, lambda latent: latent)
        if self._indices[k] <= self._indices[0] // 2:
            gain = torch.maximum(gain, self._relative(z_0, before, high_pass))
        return gain

    def _relative(
        self, z_0: Latent, before: Latent, part: Callable[[Latent], Latent]
    ) -> Float[Tensor, "b rows columns"]:
        grid = (self.tokens.shape[1], self.tokens.shape[2])
        change = region_rms(part(z_0 - before), self._refined, grid)
        return change / (region_rms(part(z_0 - self._z_lr), self._refined, grid) + GAIN_FLOOR)


class Groups(Policy):
    """``groups``: regions start as late as their coarse estimate is good enough for.

    A start at index tau from an estimate with rms error delta is admissible if the bias it brings
    is small against the noise: ``(1 - eta_tau) delta / (kappa sqrt(eta_tau)) <= rho``. Each region
    joins the last group whose first step is admissible, or else the first group. Until its
    start it follows the upstream, from whose estimate it then begins.

    Args:
        groups: the steps of each group, hardest first: schedule indices, falling to 0, each group
            starting later than the one before.
        tokens: see ``Policy``.
        schedule: the diffusion's.
        rho: largest admissible share of bias in noise, above 0.
        error: (b, rows, columns), delta; or from the upstream's first estimate to that.
    """

    def __init__(
        self,
        groups: Sequence[Sequence[int]],
        tokens: Int[Tensor, "b rows columns"],
        *,
        schedule: Schedule,
        rho: float,
        error: Float[Tensor, "b rows columns"] | Callable[[Latent], Float[Tensor, "b rows cols"]],
    ) -> None:
        first = schedule.num_steps - 1
        steps = sorted({first, *(t for group in groups for t in group)}, reverse=True)
        super().__init__(steps, tokens)
        self._error = error
        starts = [group[0] for group in groups[1:]]
        eta = schedule.eta[starts]
        self._largest = (rho * schedule.kappa * eta.sqrt() / (1 - eta)).float()
        self._runs = torch.tensor(
            [[t in group for group in groups] for t in steps], device=tokens.device
        )
        self.group = torch.zeros_like(tokens)

    def begin(self, look: Callable[[], Latent]) -> None:
        """Sort the regions into groups."""
        error = self._error(look()) if callable(self._error) else self._error
        # the largest delta falls from group to group: those it does not exceed come first
        self.group = (error[..., None] <= self._largest.to(error.device)).sum(dim=-1)

    def due(self, k: int) -> Regions:
        """The regions whose group takes this step."""
        return self._runs[k][self.group]


def spread(regions: Tensor, like: Latent) -> Tensor:
    """Values of regions (b, rows, columns) at the latents they cover, (b, 1, h, w)."""
    rows, columns = regions.shape[1:]
    tall = regions[:, None].repeat_interleave(like.shape[2] // rows, dim=2)
    return tall.repeat_interleave(like.shape[3] // columns, dim=3)


def region_mean(values: Float[Tensor, "b h w"], grid: Grid) -> Float[Tensor, "b rows columns"]:
    """Mean over each region; the sides of values are multiples of the grid's."""
    size = (values.shape[1] // grid[0], values.shape[2] // grid[1])
    return functional.avg_pool2d(values[:, None], size)[:, 0]


def region_rms(latent: Latent, refined: Refined, grid: Grid) -> Float[Tensor, "b rows columns"]:
    """Root mean square over the refined latents of each region, 0 where there are none."""
    square = region_mean((latent**2).mean(dim=1) * refined[:, 0], grid)
    share = region_mean(refined[:, 0].to(square.dtype), grid)
    return (square / share.clamp_min(torch.finfo(share.dtype).tiny)).sqrt()


def two_ended_steps(
    count: int, num_steps: int, transition: float | Tensor, exponent: float | Tensor
) -> Int[Tensor, "count *regions"]:
    """Steps that lie denser at both ends of the schedule (TSS, time-dynamic sampling).

    With ``u = k / (count - 1)``, a the transition and n the exponent, index k is
    ``round((T - 1) (1 - f(u)))`` with ``f(u) = a (u / a)^n`` up to a, and
    ``1 - (1 - a) ((1 - u) / (1 - a))^n`` beyond.

    Args:
        count: steps, 1 to T; 1 gives T - 1 alone.
        num_steps: T.
        transition: a in (0, 1), where early steps pass into late ones; a number or one per region.
        exponent: n, 1 for even steps, more for denser ends; likewise.

    Returns:
        Indices that fall or stay, with both ends.

    >>> two_ended_steps(7, 15, 0.5, 2.0).tolist()
    [14, 13, 11, 7, 3, 1, 0]
    """
    a = torch.as_tensor(transition, dtype=torch.float64)
    n = torch.as_tensor(exponent, dtype=torch.float64)
    u = torch.linspace(0, 1, count, dtype=torch.float64, device=a.device)
    u = u.reshape(-1, *[1] * max(a.ndim, n.ndim))
    early = a * (u / a) ** n
    late = 1 - (1 - a) * ((1 - u) / (1 - a)) ** n
    return ((num_steps - 1) * (1 - torch.where(u <= a, early, late))).round().long()


def detail(lr: Float[Tensor, "b 1 h w"], grid: Grid) -> Float[Tensor, "b rows columns"]:
    """Blurred local variance of the LR image per region, 1 from its 99th percentile on (TSS)."""
    variance = gaussian_blur(local_variance(lr, VARIANCE_SIDE_PX), VARIANCE_BLUR_PX)[:, 0]
    top = variance.flatten(1).quantile(VARIANCE_TOP, dim=1)[:, None, None]
    return region_mean((variance / top.clamp_min(1e-12)).clamp(0, 1), grid)
