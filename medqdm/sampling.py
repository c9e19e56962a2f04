"""Sampling: the policy that a task asks for, from its settings and what an image holds."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from medqdm.config import DiffusionSection, TSSSection
from medqdm.diffusion import policies
from medqdm.diffusion.policies import Policy, StepIndex
from medqdm.diffusion.quadtree import Quadtree
from medqdm.diffusion.sampler import Noise
from medqdm.diffusion.schedule import Schedule
from medqdm.errors import MedQDMError
from medqdm.models.regions import RegionHeads
from medqdm.models.windows import PATCH, WINDOW, WINDOW_TOKENS, WindowIndex

Latent = Float[Tensor, "b c h w"]
Tokens = Int[Tensor, "b rows columns"]

CONSISTENCY_ITERATIONS = 3
RANDOM_DRAW = 1000  # number of the first noise draw that ``random`` picks its regions by


def settings_of(
    sampler: str | None, *, steps: int | None = None, consistency: bool = False
) -> list[str]:
    """The ``key=value`` settings behind a user's short options.

    Args:
        sampler: ``diffusion.sampler.name``; it takes all steps unless told how many, whatever the
            task's default is. None: the task's sampler and steps.
        steps: ``diffusion.sampling_steps``.
        consistency: draw the output nearer to the input (``diffusion.consistency``).
    """
    found = [] if sampler is None else [f"diffusion.sampler.name={sampler}"]
    if sampler is not None or steps is not None:
        found.append(f"diffusion.sampling_steps={'null' if steps is None else steps}")
    if consistency:
        found.append(f"diffusion.consistency={CONSISTENCY_ITERATIONS}")
    return found


def make_policy(
    settings: DiffusionSection,
    schedule: Schedule,
    *,
    lr: Float[Tensor, "b 1 hl wl"],
    z_lr: Latent,
    tree: Quadtree,
    index: WindowIndex,
    noise: Noise,
    heads: RegionHeads | None = None,
) -> Policy:
    """The policy for one batch; it serves one call of the sampler.

    Args:
        settings: of the task; ``sampler`` says which policy.
        schedule: the diffusion's.
        lr: in [-1, 1].
        z_lr: latent of the upsampled LR image.
        tree: the LR image's quadtree.
        index: the tokens that the downstream runs.
        noise: the sampler's; ``random`` picks regions by draws that no step uses.
        heads: networks that tell what regions bring, where the weights carry them.

    Raises:
        MedQDMError: the settings want networks that the weights do not carry.
    """
    sampler = settings.sampler
    tokens = tokens_of_regions(index)
    steps = schedule.subset(settings.sampling_steps)
    if sampler.name == "upstream":
        return policies.UpstreamOnly(steps, tokens)
    if sampler.name == "tss":
        return Policy(_tss_steps(sampler.tss, len(steps), schedule.num_steps, lr, tokens), tokens)
    if sampler.name == "gain":
        return _gain(settings, steps, tokens, z_lr, index, heads)
    if sampler.name == "groups":
        return _groups(settings, schedule, z_lr, tree, index, heads)
    if sampler.name == "random":
        count = (sampler.random_share * (tokens > 0).sum(dim=(1, 2))).round().long()
        return policies.Random(
            steps, tokens, counts=[count] * len(steps), score=lambda k: random_scores(noise, k)
        )
    return Policy(steps, tokens)


def tokens_of_regions(index: WindowIndex) -> Tokens:
    """Tokens that each downstream window runs, 0 for windows that do not run."""
    exists = index.active[:, 0, ::PATCH, ::PATCH]
    b, rows, columns = exists.shape
    tiles = exists.reshape(
        b, rows // WINDOW_TOKENS, WINDOW_TOKENS, columns // WINDOW_TOKENS, WINDOW_TOKENS
    )
    return tiles.sum(dim=(2, 4))


def random_scores(noise: Noise, k: int) -> Float[Tensor, "b rows columns"]:
    """Random numbers per region for the k-th step, the same whatever else is in the batch."""
    draw = noise(RANDOM_DRAW + k)
    grid = (draw.shape[2] // WINDOW, draw.shape[3] // WINDOW)
    return policies.region_mean(draw.mean(dim=1), grid)


def _tss_steps(
    settings: TSSSection,
    count: int,
    num_steps: int,
    lr: Float[Tensor, "b 1 hl wl"],
    tokens: Tokens,
) -> Sequence[StepIndex]:
    (a_min, a_max), (n_min, n_max) = settings.transition, settings.exponent
    if (a_min, n_min) == (a_max, n_max):
        steps = policies.two_ended_steps(count, num_steps, a_min, n_min).tolist()
        return list(dict.fromkeys(steps))
    share = policies.detail(lr, (tokens.shape[1], tokens.shape[2])).double()
    a, n = a_min + (a_max - a_min) * share, n_min + (n_max - n_min) * share
    return list(policies.two_ended_steps(count, num_steps, a, n))


def _gain(
    settings: DiffusionSection,
    steps: Sequence[int],
    tokens: Tokens,
    z_lr: Latent,
    index: WindowIndex,
    heads: RegionHeads | None,
) -> Policy:
    gain, refined = settings.sampler.gain, index.refined
    expected = None
    if gain.source == "regressor":
        network = _needed(heads, "gain.source=regressor")

        def expected(k: int, z_0: Latent, before: Latent) -> Float[Tensor, "b rows columns"]:
            progress = steps[k] / max(1, steps[0])
            fidelity, edges = network.gain(z_0, before, z_lr, refined, progress).unbind(1)
            return torch.maximum(fidelity, edges) if progress <= 1 / 2 else fidelity

    return policies.Gain(
        steps,
        tokens,
        z_lr=z_lr,
        refined=refined,
        threshold=gain.threshold if expected is None else gain.expected,
        skips=gain.skips,
        gain=expected,
    )


def _needed(heads: RegionHeads | None, setting: str) -> RegionHeads:
    if heads is None:
        raise MedQDMError(
            f"diffusion.sampler.{setting}: needs weights with networks for regions, got weights "
            "without; add them with medqdm train-gain"
        )
    return heads


def _groups(
    settings: DiffusionSection,
    schedule: Schedule,
    z_lr: Latent,
    tree: Quadtree,
    index: WindowIndex,
    heads: RegionHeads | None,
) -> Policy:
    groups = settings.sampler.groups
    tokens = tokens_of_regions(index)
    grid = (tokens.shape[1], tokens.shape[2])
    levels = policies.region_mean(tree.difficulty.float() / len(tree.ranges), grid)

    def from_upstream(up: Latent) -> Float[Tensor, "b rows columns"]:
        if groups.confidence == "head":
            network = _needed(heads, "groups.confidence=head")
            return groups.error * network.error(up, z_lr, index.refined)
        return groups.error * policies.region_rms(up - z_lr, index.refined, grid)

    return policies.Groups(
        groups.steps,
        tokens,
        schedule=schedule,
        rho=groups.rho,
        error=groups.error * levels if groups.confidence == "level" else from_upstream,
    )
