"""The limits of region-adaptive diffusion, on a small random network."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from medqdm.build import build_autoencoder, build_qdm, build_spread
from medqdm.config import Task, load_task, parse_task
from medqdm.diffusion.policies import Random
from medqdm.diffusion.quadtree import steady
from medqdm.engine import Engine, _each
from medqdm.errors import MedQDMError
from medqdm.models.windows import WindowIndex
from medqdm.sampling import random_scores


def make(*settings: str) -> Engine:
    task: Task = load_task("tiny", ["autoencoder.latent_scale=0.8", *settings])
    torch.manual_seed(0)
    autoencoder, qdm = build_autoencoder(task), build_qdm(task)
    for parameter in qdm.parameters():  # a fresh network ends in zeros
        torch.nn.init.normal_(parameter, std=0.2)
    return Engine(task, autoencoder, qdm).eval()


@pytest.fixture(scope="module")
def lr() -> torch.Tensor:
    """One detailed half, one flat half; (2, 1, 16, 32)."""
    image = torch.zeros(2, 1, 16, 32)
    image[..., :16] = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(1)) - 0.5
    return image


def noise_of(lr: torch.Tensor):
    def noise(k: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(k)
        return torch.randn(len(lr), 3, *lr.shape[-2:], generator=generator)

    return noise


def predict(engine: Engine, lr: torch.Tensor, refined: torch.Tensor) -> torch.Tensor:
    z_lr = engine.encode(engine.upsample(lr))
    t = torch.tensor([7, 7])
    with torch.no_grad():
        return engine.predict(z_lr, t, lr=lr, z_lr=z_lr, index=WindowIndex(refined))


def test_threshold_zero_equals_the_dense_network(lr: torch.Tensor) -> None:
    engine = make()
    dense = lr + 0.01 * torch.rand(lr.shape, generator=torch.Generator().manual_seed(2))
    refined = engine.quadtree(dense, 0.0).at(8, 16)
    assert refined.all()
    everywhere = torch.ones_like(refined)
    torch.testing.assert_close(
        predict(engine, dense, refined), predict(engine, dense, everywhere), atol=0, rtol=0
    )


def test_huge_threshold_equals_the_upstream_alone(lr: torch.Tensor) -> None:
    engine = make("transformer.prediction=z_0")
    z_lr = engine.encode(engine.upsample(lr))
    t = torch.tensor([7, 7])
    with torch.no_grad():
        up, _ = engine.qdm.streams(z_lr, t, lr, WindowIndex(torch.ones(2, 8, 16).bool()))
    found = predict(engine, lr, engine.quadtree(lr, 9.0).at(8, 16))
    torch.testing.assert_close(found, up)


def test_sparse_equals_dense_where_refined(lr: torch.Tensor) -> None:
    engine = make()
    refined = engine.quadtree(lr).at(8, 16)
    assert 0 < int(refined.sum()) < refined.numel()
    sparse = predict(engine, lr, refined)
    dense = predict(engine, lr, torch.ones_like(refined))
    mask = engine.quadtree(lr).at(16, 32)[:, None].expand_as(sparse)
    torch.testing.assert_close(sparse[mask], dense[mask], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(sparse[~mask], dense[~mask])


def test_a_batch_equals_its_images_one_by_one(lr: torch.Tensor) -> None:
    engine = make("diffusion.sampling_steps=3")
    both = engine.enhance(lr, noise_of(lr))
    for k in range(2):
        one = engine.enhance(lr[k : k + 1], lambda draw, k=k: noise_of(lr)(draw)[k : k + 1])
        torch.testing.assert_close(one.sr[0], both.sr[k], atol=1e-4, rtol=1e-4)
        assert torch.equal(one.refined[0], both.refined[k])


def test_output_is_upscaled_and_reproducible(lr: torch.Tensor) -> None:
    engine = make("diffusion.sampling_steps=2")
    first, second = (engine.enhance(lr, noise_of(lr)) for _ in range(2))
    assert first.sr.shape == (2, 1, 64, 128)
    assert first.refined.shape == (2, 8, 16)
    assert torch.equal(first.sr, second.sr)
    assert float(first.sr.abs().max()) <= 1


ALL_STEPS = str(list(range(14, -1, -1)))
EVERYTHING = {
    "tss": ["tss.exponent=[1,1]", "tss.transition=[0.5,0.5]"],
    "gain": ["gain.threshold=0"],
    "groups": [f"groups.steps=[{ALL_STEPS}]"],
    "groups upstream first": [f"groups.steps=[{ALL_STEPS},{ALL_STEPS}]"],
    "random": ["random_share=1"],
}
LESS = {
    "tss": ["tss.exponent=[1,2]"],
    "gain": ["gain.threshold=0.3"],
    "groups": ["groups.error=0.3"],
    "groups by level": ["groups.confidence=level"],
    "random": ["random_share=0.5"],
    "upstream": [],
}


def sampler(name: str, settings: list[str]) -> list[str]:
    return [
        f"diffusion.sampler.{setting}" for setting in [f"name={name.partition(' ')[0]}", *settings]
    ]


NETWORKS = {
    "windows": ["transformer.packing=windows"],
    "tokens": ["transformer.packing=tokens"],
    "corrected": [
        "transformer.packing=tokens",
        "transformer.corrector={channels: 8, blocks: 1}",
    ],
}


@pytest.mark.parametrize("name", EVERYTHING)
@pytest.mark.parametrize("network", NETWORKS)
def test_all_regions_at_all_steps_are_ancestral_sampling(
    lr: torch.Tensor, name: str, network: str
) -> None:
    expected = make(*NETWORKS[network]).enhance(lr, noise_of(lr))
    engine = make(*NETWORKS[network], *sampler(name, EVERYTHING[name]))
    found = engine.enhance(lr, noise_of(lr))
    assert torch.equal(found.sr, expected.sr)
    assert torch.equal(found.cost.region_steps, expected.cost.region_steps)
    assert torch.equal(found.cost.token_steps, expected.cost.token_steps)


@pytest.mark.parametrize("name", LESS)
@pytest.mark.parametrize("gamma", [0, 1])
@pytest.mark.parametrize("network", ["windows", "corrected"])
def test_policies_do_as_much_as_they_count(
    lr: torch.Tensor, name: str, gamma: int, network: str
) -> None:
    """Alone and in a batch alike, the downstream's tokens are those of the cost."""
    engine = make(*NETWORKS[network], *sampler(name, LESS[name]), f"diffusion.gamma={gamma}")
    tokens: list[int] = []
    engine.qdm.downstream.register_forward_hook(
        lambda _module, inputs, _output: tokens.append(inputs[3].count)
    )
    both = engine.enhance(lr, noise_of(lr))
    assert sum(tokens) == int(both.cost.token_steps.sum())
    for k in range(2):
        one = engine.enhance(lr[k : k + 1], lambda draw, k=k: noise_of(lr)(draw)[k : k + 1])
        torch.testing.assert_close(one.sr[0], both.sr[k], atol=1e-4, rtol=1e-4)
        assert int(one.cost.region_steps) == int(both.cost.region_steps[k])


@pytest.mark.parametrize("name", LESS)
@pytest.mark.parametrize("network", ["tokens", "corrected"])
def test_policies_run_in_bf16(lr: torch.Tensor, name: str, network: str) -> None:
    engine = make(*NETWORKS[network], *sampler(name, LESS[name]))
    exact = engine.enhance(lr, noise_of(lr))
    with torch.autocast("cpu", torch.bfloat16):
        found = engine.enhance(lr, noise_of(lr))
    assert float((found.sr - exact.sr).abs().mean()) < 0.2  # an untrained network amplifies


def test_the_upstream_alone_is_not_corrected_where_it_stands_in(lr: torch.Tensor) -> None:
    """Detail that the control leaves to the upstream is the upstream's; the rest is corrected."""
    engine = make(*NETWORKS["corrected"], *sampler("upstream", []), "diffusion.sampling_steps=1")
    z_lr = engine.encode(engine.upsample(lr))
    index = engine.index(engine.quadtree(lr), z_lr)
    t = torch.tensor([engine.process.schedule.num_steps - 1] * 2)
    z_t = engine.process.prior(z_lr, noise_of(lr)(0), index.refined)
    scaled = engine.process.scale_input(z_t, t, index.refined)
    nowhere = engine.index(engine.quadtree(lr, 9.0), z_lr)
    with torch.no_grad():
        up, _ = engine.qdm.streams(scaled, t, lr, nowhere, index.refined)
    base, scale = engine.frame(scaled, t, z_lr=z_lr, noisy=index.refined)
    upstream = up * scale + base
    found = engine.denoise(lr, z_lr, index, noise_of(lr))
    refined = index.refined.expand_as(found)
    torch.testing.assert_close(found[refined], upstream[refined], atol=1e-4, rtol=1e-4)
    assert (found - upstream)[~refined].abs().max() > 1e-3


def test_costs_are_those_of_the_windows(lr: torch.Tensor) -> None:
    engine = make("diffusion.sampling_steps=4")
    cost = engine.enhance(lr, noise_of(lr)).cost
    assert cost.evaluations == 4
    assert cost.region_steps.tolist() == [4, 4]  # the left one of two windows
    assert cost.token_steps.tolist() == [4 * 64, 4 * 64]
    packed = make("diffusion.sampling_steps=4", "transformer.packing=tokens")
    refined = packed.quadtree(lr).refined.sum(dim=(1, 2))
    assert packed.enhance(lr, noise_of(lr)).cost.token_steps.tolist() == (4 * refined).tolist()


def test_a_control_repeats_the_region_steps_of_a_policy(lr: torch.Tensor) -> None:
    dense = lr + 0.3 * torch.rand(lr.shape, generator=torch.Generator().manual_seed(2))
    engine = make(*sampler("gain", ["gain.threshold=0.3"]))
    cost = engine.enhance(dense, noise_of(lr)).cost
    z_lr = engine.encode(engine.upsample(dense))
    index = engine.index(engine.quadtree(dense), z_lr)
    first = engine.policy(dense, z_lr, index, noise_of(lr))
    control = Random(
        list(range(14, -1, -1)), first.tokens, counts=cost.regions,
        score=lambda k: random_scores(noise_of(lr), k),
    )  # fmt: skip
    engine.denoise(dense, z_lr, index, noise_of(lr), control)
    assert torch.equal(control.cost.region_steps, cost.region_steps)
    assert 0 < int(cost.region_steps.sum()) < 15 * 2 * 2


class Questions(TorchDispatchMode):
    """Operations whose answer the host waits for."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.__name__.split(".")[0]
        is_mask = name == "index" and any(i is not None and i.dtype == torch.bool for i in args[1])
        if is_mask or name in ("nonzero", "_local_scalar_dense", "bincount"):
            self.found.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["uniform", "tss", "gain"])
def test_steps_known_beforehand_ask_the_device_nothing(lr: torch.Tensor, name: str) -> None:
    engine = make(*sampler(name, []), "diffusion.sampling_steps=5", "transformer.packing=tokens")
    z_lr = engine.encode(engine.upsample(lr))
    index = engine.index(engine.quadtree(lr), z_lr)
    policy = engine.policy(lr, z_lr, index, noise_of(lr))
    with Questions() as questions:
        engine.denoise(lr, z_lr, index, noise_of(lr), policy)
    assert bool(questions.found) == (name == "gain")  # regions chosen on the way are counted


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("name=best", "sampler.name: .* got 'best'"),
        ("groups.steps=[[14,3],[3,0]]", r"must fall to 0 in each group, got \[14, 3\]"),
        ("groups.steps=[[3,0],[9,5,0]]", r"start later from group to group, got starts \[3, 9\]"),
        ("tss.exponent=[2,1]", "first number must not be above"),
        ("tss.transition=[0,1]", "greater than 0, got 0"),
        ("gain.threshold=-1", "got -1"),
    ],
)
def test_sampler_settings_that_do_not_fit_are_refused(setting: str, message: str) -> None:
    with pytest.raises(MedQDMError, match=message):
        load_task("tiny", [f"diffusion.sampler.{setting}"])


def test_groups_must_fit_the_schedule() -> None:
    four = ["diffusion.num_steps=4", "diffusion.min_noise_level=0.2"]
    assert load_task("tiny", four).diffusion.num_steps == 4
    with pytest.raises(MedQDMError, match=r"groups\.steps must be below num_steps = 4, got 14"):
        load_task("tiny", [*four, "diffusion.sampler.name=groups"])


def test_tasks_written_without_a_sampler_are_read_as_before() -> None:
    task = load_task("tiny")
    data = task.model_dump()
    del data["diffusion"]["sampler"]
    assert parse_task(data, where="old") == task


def test_cells_given_from_outside_are_refined(lr: torch.Tensor) -> None:
    engine = make("diffusion.sampling_steps=2")
    difficulty = torch.zeros(2, 8, 16, dtype=torch.int64)
    difficulty[0, 3, 11], difficulty[0, 3, 12] = 3, 4
    found = engine.enhance(lr, noise_of(lr), difficulty=difficulty)
    assert torch.equal(found.refined, difficulty == 4)
    assert found.cost.region_steps.tolist() == [2, 0]


def test_groups_by_level_follow_the_neighbours_of_a_steady_volume(lr: torch.Tensor) -> None:
    groups = ("sampler.name=groups", "sampler.groups.confidence=level", "sampling_steps=15")
    engine = make(*(f"diffusion.{setting}" for setting in groups))
    alone = torch.zeros(2, 8, 16, dtype=torch.int64)
    alone[:, 3, 11] = 4
    with_neighbours = steady(torch.stack([alone[0], torch.full_like(alone[0], 3)]), "max")[0]
    both = torch.stack([alone[0], with_neighbours])
    found = engine.enhance(lr, noise_of(lr), difficulty=both)
    assert torch.equal(found.refined[0], found.refined[1])
    easy, hard = found.cost.region_steps.tolist()
    assert easy < hard


def test_the_best_guess_of_one_step_is_free_of_chance(lr: torch.Tensor) -> None:
    """It starts from z_LR; several steps are drawn nevertheless."""
    one = ("diffusion.sampling_steps=1", "diffusion.one_step=mean")
    engine, drawing = make(*one), make(one[0])
    real = noise_of(lr)
    other = lambda k: real(50 + k)  # noqa: E731
    nothing = lambda k: torch.zeros_like(real(k))  # noqa: E731
    guess = engine.enhance(lr, real).sr
    assert torch.equal(guess, engine.enhance(lr, other).sr)
    assert torch.equal(guess, drawing.enhance(lr, nothing).sr)
    assert not torch.equal(guess, drawing.enhance(lr, real).sr)
    two = make("diffusion.sampling_steps=2", one[1])
    assert not torch.equal(two.enhance(lr, real).sr, two.enhance(lr, other).sr)


def test_uncertainty_is_the_deviation_over_draws_where_noise_was(
    lr: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make("diffusion.sampling_steps=2")
    other = noise_of(lr)
    noises = [noise_of(lr), lambda k: other(50 + k), lambda k: other(90 + k)]
    nothing = torch.zeros(2, 8, 16, dtype=torch.int64)

    def show(**options: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        z_lr = engine.encode(engine.upsample(lr))
        drawn = engine.draw(lr, z_lr, noises, **options)
        return engine.show(drawn.latents, lr, z_lr=z_lr, refined=drawn.refined, white=None)

    first, deviation = show()
    assert torch.equal(first, engine.enhance(lr, noises[0]).sr)
    assert deviation.shape == first.shape
    assert not show(difficulty=nothing)[1].any()
    monkeypatch.setattr(engine, "decode", lambda z, _lr: z[:, :1])
    draws = [engine.enhance(lr, noise).sr for noise in noises]
    refined = engine.quadtree(lr).at(16, 32)[:, None]
    expected = torch.where(refined, 1000 * torch.stack(draws).std(dim=0), 0)
    torch.testing.assert_close(show()[1], expected)
    few = {"z_lr": draws[0], "refined": engine.quadtree(lr).refined, "white": None}
    assert engine.show(draws[:1], lr, **few)[1] is None


def with_spread(*settings: str) -> Engine:
    engine = make(*settings)
    engine.spread = build_spread(engine.task)
    return engine


def test_spread_widens_draws_and_leaves_the_best_guess(lr: torch.Tensor) -> None:
    one = ("diffusion.sampling_steps=1", "diffusion.one_step=mean")
    assert torch.equal(
        make(*one).enhance(lr, noise_of(lr)).sr, with_spread(*one).enhance(lr, noise_of(lr)).sr
    )
    few = ("diffusion.sampling_steps=4", "quadtree.threshold=0")
    plain, wide = make(*few), with_spread(*few)
    off = with_spread(*few, "diffusion.spread=false")
    z_lr = plain.encode(plain.upsample(lr))
    drawn = [
        torch.stack([
            e.draw(lr, z_lr, [lambda k, n=n: noise_of(lr)(100 * n + k)]).latents[0]
            for n in range(20)
        ])
        for e in (plain, wide, off)
    ]  # fmt: skip
    refined = plain.quadtree(lr).at(16, 32)[:, None].expand(-1, 3, -1, -1)
    spreads = [float(z.std(dim=0)[refined].mean()) for z in drawn]
    assert spreads[1] > 1.05 * spreads[0]
    assert torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize(("settings", "share"), [
    (("diffusion.sampling_steps=2", "diffusion.gamma=0.5"), 0.5),
    (("diffusion.sampling_steps=2", "diffusion.gamma=0"), 0),
    (("diffusion.sampling_steps=1", "diffusion.one_step=draw"), 0),
    (("diffusion.sampling_steps=1", "diffusion.one_step=mean"), 0),
])  # fmt: skip
def test_texture_is_as_strong_as_chance(lr: torch.Tensor, settings: tuple, share: float) -> None:
    engine = with_spread(*settings)
    z_lr = engine.encode(engine.upsample(lr))
    drawn = engine.draw(lr, z_lr, [noise_of(lr)])
    white = torch.randn(2, 1, 64, 128, generator=torch.Generator().manual_seed(8))
    shown, _ = engine.show(drawn.latents, lr, z_lr=z_lr, refined=drawn.refined, white=lambda: white)
    plain = engine.decode(drawn.latents[0], lr)
    inside = plain.abs() < 0.5
    added = (shown - plain)[inside].detach()
    assert float(added.std()) == pytest.approx(0.02 * share, rel=0.05, abs=1e-5)


def test_a_draw_is_shown_with_texture_and_a_mean_without(lr: torch.Tensor) -> None:
    engine = with_spread("diffusion.sampling_steps=2")
    z_lr = engine.encode(engine.upsample(lr))
    noises = [lambda k, n=n: noise_of(lr)(100 * n + k) for n in range(3)]
    drawn = engine.draw(lr, z_lr, noises)
    generator = torch.Generator().manual_seed(8)
    white = torch.randn(2, 1, 64, 128, generator=generator)
    rest = {"z_lr": z_lr, "refined": drawn.refined, "white": lambda: white}
    images = [engine.decode(z, lr) for z in drawn.latents]
    mask = drawn.refined.repeat_interleave(2, 1).repeat_interleave(2, 2)[:, None]
    textured = engine.spread.textured(images[0], drawn.latents[0], z_lr, mask, white)
    shown, deviation = engine.show(drawn.latents, lr, **rest)
    assert (textured - images[0]).std() > 0
    torch.testing.assert_close(shown, textured)
    mean, same = engine.show(drawn.latents, lr, **rest, mean=True)
    torch.testing.assert_close(mean, torch.stack(images).mean(dim=0))
    assert torch.equal(same, deviation)
    left_out = 20.0  # HU: what an untrained network gives for the pixels
    expected = ((1000 * torch.stack(images).std(dim=0)) ** 2 + left_out**2).sqrt()
    torch.testing.assert_close(deviation, expected, atol=1e-2, rtol=1e-3)


def test_bicubic_upsampling_keeps_positions() -> None:
    engine = make()
    image = torch.zeros(1, 1, 16, 16)
    image[..., 5, 9] = 1
    up = engine.upsample(image)[0, 0].clamp_min(0)
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    centre = float((up * y).sum() / up.sum()), float((up * x).sum() / up.sum())
    assert centre == pytest.approx((5 * 4 + 1.5, 9 * 4 + 1.5), abs=1e-3)


def test_unmeasured_latents_are_refused(lr: torch.Tensor) -> None:
    task = load_task("tiny")
    engine = Engine(task, build_autoencoder(task), build_qdm(task))
    with pytest.raises(MedQDMError, match="latent_scale must be a number, got none"):
        engine.encode(engine.upsample(lr))


@pytest.mark.parametrize("settings", [
    ("upscale=8",),  # latents finer than the input
    ("autoencoder.channels=[32, 32, 32, 32]",),  # coarser than it: two cells for a token
])  # fmt: skip
def test_refined_cells_lie_where_their_tokens_do(settings: tuple[str, ...]) -> None:
    engine = make("slice_px=128", *settings)
    side = 128 // engine.task.upscale
    image = torch.zeros(1, 1, side, side)
    random = torch.rand(1, 1, side, 6, generator=torch.Generator().manual_seed(1)) - 0.5
    image[..., : side // 2, 2:8] = random[..., : side // 2, :]
    z_lr = engine.encode(engine.upsample(image))
    tree = engine.quadtree(image)
    assert 0 < tree.refined.float().mean() < 1
    assert torch.equal(_each(tree.refined, z_lr), engine.index(tree, z_lr).refined)
