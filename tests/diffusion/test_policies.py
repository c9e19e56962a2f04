import itertools
from collections.abc import Callable

import pytest
import torch

from medqdm.diffusion.policies import (
    Gain,
    Groups,
    Policy,
    Random,
    UpstreamOnly,
    detail,
    region_rms,
    spread,
    two_ended_steps,
)
from medqdm.diffusion.process import Process
from medqdm.diffusion.sampler import sample, sample_regions
from medqdm.diffusion.schedule import Schedule

SCHEDULE = Schedule(num_steps=15, kappa=2.0, min_noise_level=0.04, max_sqrt_eta=0.99, power=0.3)
PROCESS = Process(SCHEDULE, published_masking=False)
ALL = SCHEDULE.subset(None)
SHAPE = (2, 3, 32, 48)
GRID = (2, 3)  # regions of 16 x 16 latents
TOKENS = torch.tensor([[[64, 64, 0], [3, 64, 64]], [[64, 9, 64], [64, 1, 0]]])


def normal(seed: int, shape: tuple[int, ...] = SHAPE) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


Z_LR, TRUTH = normal(1), normal(2)
REFINED = spread(TOKENS > 0, Z_LR) & (normal(3)[:, :1] > -0.5)


def draw(k: int) -> torch.Tensor:
    return normal(100 + k)


def streams(scaled: torch.Tensor, t: int | torch.Tensor, due: torch.Tensor | None) -> torch.Tensor:
    """Two different denoisers whose answers depend on state and step, as a network's do."""
    if isinstance(t, torch.Tensor):
        t = spread(t, scaled)
    up, down = 0.6 * scaled + 0.01 * t, 0.3 * scaled.roll(1, dims=3) - 0.02 * t
    where = REFINED if due is None else REFINED & spread(due, scaled)
    return torch.where(where, down, up)


def run(
    policy: Policy, denoise: Callable[..., torch.Tensor], gamma: float, process: Process = PROCESS
) -> torch.Tensor:
    *_, last = sample_regions(
        denoise, process, Z_LR, policy=policy, gamma=gamma, noise=draw, refined=REFINED
    )
    return last.z_s


def gain(threshold: float) -> Policy:
    return Gain(ALL, TOKENS, z_lr=Z_LR, refined=REFINED, threshold=threshold)


def groups(*steps: list[int], error: torch.Tensor | None = None) -> Policy:
    error = normal(4, TOKENS.shape).abs() if error is None else error
    return Groups(steps, TOKENS, schedule=SCHEDULE, rho=0.25, error=error)


def random(counts: torch.Tensor, steps: list[int] = ALL) -> Policy:
    return Random(
        steps, TOKENS, counts=[counts] * len(steps), score=lambda k: normal(500 + k, TOKENS.shape)
    )


def tss() -> Policy:
    n = 1 + normal(5, TOKENS.shape).abs().double()
    return Policy(list(two_ended_steps(7, 15, 0.5, n)), TOKENS)


POLICIES: dict[str, Callable[[], Policy]] = {
    "uniform": lambda: Policy([14, 9, 5, 0], TOKENS),
    "tss": tss,
    "gain": lambda: gain(0.3),
    "groups": lambda: groups([14, 11, 8, 5, 2, 0], [9, 5, 2, 0], [3, 0]),
    "random": lambda: random(torch.tensor([1, 2])),
    "upstream": lambda: UpstreamOnly(ALL, TOKENS),
}
EVERYTHING: dict[str, Callable[[], Policy]] = {
    "uniform": lambda: Policy(ALL, TOKENS),
    "tss": lambda: Policy(two_ended_steps(15, 15, 0.4, 1.0).tolist(), TOKENS),
    "gain": lambda: gain(0.0),
    "groups": lambda: groups(ALL),
    "random": lambda: random((TOKENS > 0).sum(dim=(1, 2))),
}


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("gamma", [0.0, 1.0])
def test_an_exact_denoiser_returns_the_truth(name: str, gamma: float) -> None:
    policy = POLICIES[name]()
    out = run(policy, lambda _z, _t, _due: TRUTH, gamma)
    torch.testing.assert_close(out, TRUTH, atol=0, rtol=0)


@pytest.mark.parametrize("name", EVERYTHING)
@pytest.mark.parametrize("published", [False, True])
def test_all_regions_at_all_steps_are_ancestral_sampling(name: str, published: bool) -> None:
    process = Process(SCHEDULE, published_masking=published)
    *_, expected = sample(
        lambda z, t: streams(z, t, None), process, Z_LR,
        steps=ALL, gamma=1.0, noise=draw, refined=REFINED,
    )  # fmt: skip
    policy = EVERYTHING[name]()
    assert torch.equal(run(policy, streams, 1.0, process), expected.z_s)
    assert policy.cost.region_steps.tolist() == [15 * 5, 15 * 5]
    assert policy.cost.token_steps.tolist() == (15 * TOKENS.sum(dim=(1, 2))).tolist()
    assert policy.cost.evaluations == 15


@pytest.mark.parametrize("name", POLICIES)
def test_policies_are_reproducible_and_differ_from_the_rest(name: str) -> None:
    out = run(POLICIES[name](), streams, 1.0)
    assert torch.equal(out, run(POLICIES[name](), streams, 1.0))
    for other in POLICIES.keys() - {name}:
        assert not torch.equal(out, run(POLICIES[other](), streams, 1.0))


class OnceOnTheLeft(Policy):
    """The left half runs at the first step alone, the right half always."""

    def due(self, k: int) -> torch.Tensor:
        return torch.tensor([[[k == 0, True]]])


@pytest.mark.parametrize("gamma", [0.0, 1.0])
def test_held_regions_keep_their_marginal_and_their_noise(gamma: float) -> None:
    shape = (1, 1, 256, 512)
    z_lr, estimate = torch.full(shape, -0.6), 0.4
    states: list[torch.Tensor] = []

    def denoise(scaled: torch.Tensor, t: int, due: torch.Tensor | None) -> torch.Tensor:
        states.append(scaled * (4 * SCHEDULE.eta[t].float() + 1).sqrt())
        return torch.full(shape, estimate if len(states) == 1 else 7.0)

    policy = OnceOnTheLeft(ALL, torch.full((1, 1, 2), 64))
    *_, last = sample_regions(
        denoise, PROCESS, z_lr, policy=policy, gamma=gamma, noise=lambda k: normal(k, shape)
    )
    carried = []
    for t, state in zip(ALL[1:], states[1:], strict=True):
        eta = float(SCHEDULE.eta[t])
        left = state[..., :256] - (estimate + eta * (-0.6 - estimate))
        carried.append(left / (2 * eta**0.5))
        assert float(carried[-1].mean()) == pytest.approx(0, abs=0.02)
        assert float(carried[-1].std()) == pytest.approx(1, abs=0.02)
    torch.testing.assert_close(carried[-1], carried[0], atol=1e-3, rtol=0)
    assert (last.z_s[..., :256] == estimate).all()
    assert (last.z_s[..., 256:] == 7).all()


def test_a_group_begins_from_the_upstream_s_estimate() -> None:
    """Until its start a region is ``c + eta (z_lr - c) + kappa sqrt(eta) e``."""
    seen: dict[int, torch.Tensor] = {}

    def denoise(scaled: torch.Tensor, t: int, due: torch.Tensor | None) -> torch.Tensor:
        assert due is not None
        seen[t] = scaled * (4 * SCHEDULE.eta[t].float() + 1).sqrt()
        assert bool(due[TOKENS > 0].all()) == bool(due[TOKENS > 0].any()) == (t in (9, 0))
        return TRUTH

    policy = groups([14, 0], [9, 0], error=torch.full(TOKENS.shape, 0.4))
    run(policy, denoise, 0.0)
    eta = SCHEDULE.eta[9].float()
    expected = TRUTH + eta * (Z_LR - TRUTH)
    e = (seen[14] - TRUTH - SCHEDULE.eta[14].float() * (Z_LR - TRUTH)) / (
        2 * SCHEDULE.eta[14].float().sqrt()
    )
    expected = expected + 2 * eta.sqrt() * e
    where = REFINED.expand(SHAPE)
    torch.testing.assert_close(seen[9][where], expected[where], atol=1e-4, rtol=0)


def test_groups_follow_the_admissibility_rule() -> None:
    # with rho = .25 a start at 9 is admissible up to .48, at 3 up to .12
    error = torch.tensor([[[0.0, 0.11, 0.13], [0.46, 0.50, 9.0]]]).expand(2, 2, 3)
    policy = groups([14, 5, 0], [9, 0], [3, 0], error=error)
    run(policy, streams, 1.0)
    assert isinstance(policy, Groups)
    assert policy.group[0].tolist() == [[2, 2, 1], [1, 0, 0]]
    assert policy.steps == [14, 9, 5, 3, 0]
    # regions of hard, medium and easy that hold tokens, at each of the steps
    hard, medium, easy = 2, 1, 2
    expected = [hard, medium, hard, easy, hard + medium + easy]
    assert [int(step[0]) for step in policy.cost.regions] == expected


def test_groups_look_at_the_upstream_before_the_first_step() -> None:
    up: list[torch.Tensor] = []

    def error(estimate: torch.Tensor) -> torch.Tensor:
        up.append(estimate)
        return region_rms(estimate - Z_LR, REFINED, GRID)

    policy = Groups([ALL, [3, 0]], TOKENS, schedule=SCHEDULE, rho=0.25, error=error)
    run(policy, streams, 1.0)
    first = PROCESS.prior(Z_LR, draw(0), REFINED)
    scaled = PROCESS.scale_input(first, torch.tensor([14, 14]), REFINED)
    torch.testing.assert_close(up[0], 0.6 * scaled + 0.14)
    assert policy.cost.evaluations == 16


def gained(estimate: Callable[[int], torch.Tensor]) -> list[int]:
    """Steps at which a region runs, if that gives it this estimate; z_lr is 0."""
    z_0 = torch.zeros(1, 1, 16, 16)
    one = torch.full((1, 1, 1), 64)
    policy = Gain(ALL, one, z_lr=z_0, refined=z_0 == 0, threshold=0.05)
    runs = []
    for k in range(15):
        if policy.due(k).all():
            z_0 = estimate(k)
            runs.append(k)
        policy.observe(k, z_0)
    return runs


def test_gain_skips_and_freezes() -> None:
    flat = torch.ones(1, 1, 16, 16)
    # nothing ever changes: the second low run, four steps after the first, is the last
    assert gained(lambda _k: 0 * flat) == [0, 4]
    # a change against z_lr at first, then none
    assert gained(lambda _k: flat) == [0, 1, 5]
    # gains of 1 / (k + 1), from the fifth step on less than 4 x .05, so that it skips
    assert gained(lambda k: (k + 1) * flat) == [0, 1, 2, 3, 4, 6, 7, 9, 11, 13, 14]


def test_gain_asks_who_expects_it() -> None:
    z_0 = torch.zeros(1, 1, 16, 32)
    two = torch.full((1, 1, 2), 64)
    asked: list[int] = []

    def expected(k: int, _z_0: torch.Tensor, _before: torch.Tensor) -> torch.Tensor:
        asked.append(k)
        return torch.tensor([[[0.5, -0.5]]])

    for threshold, runs in ((0.05, [15, 2]), (0.0, [15, 15])):
        policy = Gain(
            ALL, two, z_lr=z_0, refined=z_0 == 0, threshold=threshold, skips=(1, 2, 3, 6),
            gain=expected,
        )  # fmt: skip
        count, low = torch.zeros(2, dtype=torch.int64), []
        for k in range(15):
            due = policy.due(k)[0, 0]
            count += due
            low += [k] * int(due[1])
            policy.observe(k, z_0)
        assert count.tolist() == runs
        assert threshold == 0 or low == [0, 6]
    assert asked == [*range(15)] * 2


def test_gain_minds_edges_in_the_later_half() -> None:
    flat = torch.ones(1, 1, 16, 16)
    board = (torch.arange(16)[:, None] + torch.arange(16)) % 2 * 2.0 - 1

    def grown(k: int) -> torch.Tensor:
        return flat * (min(k, 6) + 1)

    assert gained(grown) == [0, 1, 2, 3, 4, 6, 7, 11]
    edges = gained(lambda k: grown(k) + 0.1 * max(0, k - 6) * board)
    assert edges == [0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11, 13, 14]


def test_random_runs_as_many_regions_as_the_policy_it_is_held_against() -> None:
    adaptive = gain(0.3)
    run(adaptive, streams, 1.0)
    control = Random(
        ALL, TOKENS, counts=adaptive.cost.regions, score=lambda k: normal(k, TOKENS.shape)
    )
    run(control, streams, 1.0)
    assert torch.equal(torch.stack(control.cost.regions), torch.stack(adaptive.cost.regions))
    assert 0 < int(control.cost.region_steps[0]) < 75


def test_upstream_only_runs_no_region() -> None:
    policy = POLICIES["upstream"]()
    run(policy, streams, 1.0)
    assert policy.cost.region_steps.tolist() == policy.cost.token_steps.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("count", "exponent", "steps"),
    [
        (4, 1.0, [14, 9, 5, 0]),
        (4, 1.5, [14, 10, 4, 0]),
        (4, 2.0, [14, 11, 3, 0]),
        (5, 2.0, [14, 12, 7, 2, 0]),
        (6, 1.5, [14, 12, 9, 5, 2, 0]),
        (6, 2.0, [14, 13, 10, 4, 1, 0]),
        (7, 1.0, [14, 12, 9, 7, 5, 2, 0]),
        (8, 1.5, [14, 13, 11, 8, 6, 3, 1, 0]),
        (8, 2.0, [14, 13, 12, 9, 5, 2, 1, 0]),
        (1, 2.0, [14]),
    ],
)
def test_two_ended_steps(count: int, exponent: float, steps: list[int]) -> None:
    assert two_ended_steps(count, 15, 0.5, exponent).tolist() == steps


def test_two_ended_steps_per_region_fall_between_both_ends() -> None:
    n, a = torch.tensor([1.0, 1.3, 2.0]), torch.tensor([0.4, 0.5, 0.6])
    steps = two_ended_steps(8, 15, a, n)
    assert steps.shape == (8, 3)
    assert (steps[0] == 14).all()
    assert (steps[-1] == 0).all()
    assert all((late <= early).all() for early, late in itertools.pairwise(steps))
    assert steps[:, 2].tolist() == two_ended_steps(8, 15, 0.6, 2.0).tolist()


def test_a_repeated_index_changes_nothing() -> None:
    repeated = [torch.full(TOKENS.shape, t) for t in (14, 9, 9, 0)]
    plain = run(Policy([14, 9, 0], TOKENS), streams, 0.0)
    torch.testing.assert_close(run(Policy(repeated, TOKENS), streams, 0.0), plain)


def test_detail_is_where_the_image_varies() -> None:
    lr = torch.zeros(1, 1, 32, 64)
    lr[..., 32:] = 0.2 * normal(1, (1, 1, 32, 32))
    share = detail(lr, (1, 4))
    assert float(share[0, 0, 0]) == pytest.approx(0, abs=1e-3)
    assert float(share[0, 0, 3]) > 0.6
    assert float(share.max()) <= 1
    assert not detail(torch.zeros(1, 1, 32, 32), (2, 2)).any()


def test_region_rms_counts_refined_latents_alone() -> None:
    latent = torch.ones(1, 3, 16, 32)
    latent[..., 8:, :16] = 9
    refined = torch.zeros(1, 1, 16, 32, dtype=torch.bool)
    refined[..., :8, :16] = True
    assert region_rms(latent, refined, (1, 2)).tolist() == [[[1.0, 0.0]]]
