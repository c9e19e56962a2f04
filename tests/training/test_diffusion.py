"""Stage two: Eq. 6 and 7, and the thresholds that it trains with."""

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from medqdm import metrics
from medqdm.build import build_autoencoder, build_qdm
from medqdm.config import load_task
from medqdm.engine import Engine
from medqdm.errors import MedQDMError
from medqdm.training.diffusion import DiffusionModule, gradient_error
from medqdm.window import Window


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Distance(nn.Module):
    """Stands in for LPIPS and keeps what it was shown."""

    def forward(self, image: Tensor, reference: Tensor) -> Tensor:
        self.shown = image, reference
        return ((image - reference) ** 2).mean(dim=(1, 2, 3))


def make(*settings: str, perceptual: Any = None) -> DiffusionModule:
    """A module outside a trainer, whose log is a dict."""
    torch.manual_seed(0)
    task = load_task("tiny", ["autoencoder.latent_scale=2", *settings])
    engine = Engine(task, build_autoencoder(task).eval(), build_qdm(task))
    module = DiffusionModule(task, engine, perceptual)
    module.logged = {}
    module.log = lambda name, value, **_: module.logged.update({name: float(value.detach())})
    module.log_dict = lambda values: [module.log(*item) for item in values.items()]
    return module


def make_batch(count: int = 2) -> dict[str, Any]:
    """A flat left half and a noisy right half."""
    generator = torch.Generator().manual_seed(1)
    lr = torch.rand(count, 1, 16, 16, generator=generator) * 1.6 - 0.8
    lr[..., :8] = 0.1
    hr = nn.functional.interpolate(lr, scale_factor=4, mode="nearest")
    return {"hr": hr, "lr": lr, "patient": ["a"] * count, "slice": torch.arange(count)}


def test_thresholds_are_drawn_in_their_shares() -> None:
    torch.manual_seed(0)
    thresholds = make("quadtree.threshold=0.2").draw_thresholds(20_000, torch.device("cpu"))
    assert (thresholds == 0.2).float().mean().item() == pytest.approx(0.70, abs=0.02)
    assert (thresholds == 0).float().mean().item() == pytest.approx(0.15, abs=0.02)
    rest = thresholds[(thresholds != 0.2) & (thresholds != 0)]
    assert rest.min() >= 0
    assert rest.max() <= 0.4
    assert rest.mean().item() == pytest.approx(0.2, abs=0.01)  # even over [0, 2 s]


def test_without_mask_training_everything_is_refined() -> None:
    batch = make_batch()
    batch["lr"].zero_()  # not even a threshold of 0 would refine this
    module = make("training.diffusion.mask_training=none")
    module.training_step(batch, 0)
    assert module.logged["train/density"] == 1
    module = make()
    module.training_step(batch, 0)
    assert module.logged["train/density"] == 0
    assert module.logged["train/downstream"] == 0


@pytest.mark.parametrize("prediction", ["z_0", "residual"])
def test_the_loss_is_eq_6_with_the_downstream_where_refined(
    prediction: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = make(
        f"transformer.prediction={prediction}",
        "training.diffusion.upstream_weight=0.5",
        "training.diffusion.downstream_weight=2",
    )
    batch, engine = make_batch(), module.engine
    monkeypatch.setattr(module, "draw_thresholds", lambda *_: torch.tensor([0.0, 9.0]))
    with torch.no_grad():
        z_0, z_lr = engine.encode(batch["hr"]), engine.encode(engine.upsample(batch["lr"]))
    target = z_0 - z_lr if prediction == "residual" else z_0
    refined = torch.zeros(2, 1, 16, 16, dtype=torch.bool)
    refined[0, ..., 8:] = True  # the noisy half of the first slice

    def streams(*_: Any) -> tuple[Tensor, Tensor]:
        return target + 0.1, target + torch.where(refined, 0.3, 1e4)

    monkeypatch.setattr(engine.qdm, "streams", streams)
    loss = module.training_step(batch, 0)
    assert module.logged["train/upstream"] == pytest.approx(0.01, rel=1e-4)
    assert module.logged["train/downstream"] == pytest.approx(0.09, rel=1e-4)
    assert loss.item() == pytest.approx(0.5 * 0.01 + 2 * 0.09, rel=1e-4)


def test_the_best_guess_learns_from_what_it_will_start_with(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = make("training.diffusion.mean_share=1")
    batch, engine = make_batch(), module.engine
    threshold = module.task.quadtree.threshold
    monkeypatch.setattr(module, "draw_thresholds", lambda *_: torch.full((2,), threshold))
    seen = []
    real = engine.qdm.streams
    monkeypatch.setattr(
        engine.qdm, "streams", lambda z, t, *rest: seen.append((z, t)) or real(z, t, *rest)
    )
    module.training_step(batch, 0)
    ((scaled, t),) = seen
    assert (t == engine.process.schedule.num_steps - 1).all()
    z_lr = engine.encode(engine.upsample(batch["lr"]))
    refined = engine.index(engine.quadtree(batch["lr"]), z_lr).refined
    expected = engine.process.scale_input(z_lr, t)
    both = refined.expand_as(z_lr)
    torch.testing.assert_close(scaled[both], expected[both])
    assert both.any()


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_preconditioned_losses_are_in_units_of_the_guess(
    share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = make(
        "transformer={size: custom, depth: 2, hidden_size: 32, num_heads: 2, "
        "prediction: preconditioned, mask_input: true}",
        "diffusion.residual_deviation=1.5",
        f"training.diffusion.region_steps_share={share}",
        "training.diffusion.image_weight=1",
    )
    batch, engine = make_batch(), module.engine
    seen: dict[str, Tensor] = {}

    def streams(scaled: Tensor, t: Any, _lr: Tensor, index: Any) -> tuple[Tensor, Tensor]:
        # the perfect network: it knows z_0
        steps = seen["t"]
        base, scale = engine.frame(scaled, steps, z_lr=z_lr, noisy=index.refined)
        perfect = (z_0 - base) / scale
        return perfect, torch.where(index.refined, perfect, 1e4)

    with torch.no_grad():
        z_0, z_lr = engine.encode(batch["hr"]), engine.encode(engine.upsample(batch["lr"]))
    real = module.draw_steps
    monkeypatch.setattr(module, "draw_steps", lambda z: seen.setdefault("t", real(z)))
    monkeypatch.setattr(engine.qdm, "streams", streams)
    shown: list[Tensor] = []
    monkeypatch.setattr(
        module, "image_loss", lambda z, *_: shown.append(z) or torch.zeros((), requires_grad=True)
    )
    module.training_step(batch, 0)
    assert seen["t"].ndim == (4 if share else 1)
    assert module.logged["train/upstream"] == pytest.approx(0, abs=1e-6)
    assert module.logged["train/downstream"] == pytest.approx(0, abs=1e-6)
    torch.testing.assert_close(shown[0], z_0, atol=1e-4, rtol=1e-4)


CORRECTOR = "transformer.corrector={channels: 8, blocks: 1}"


def test_a_corrector_has_a_loss_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    module = make(
        CORRECTOR,
        "transformer.prediction=z_0",
        "training.diffusion.image_weight=1",
        "training.diffusion.corrector_weight=3",
    )
    batch, engine = make_batch(), module.engine
    with torch.no_grad():
        z_0 = engine.encode(batch["hr"])
    monkeypatch.setattr(engine.qdm, "correct", lambda *_: z_0 + 0.1)
    shown: list[Tensor] = []
    monkeypatch.setattr(
        module, "image_loss", lambda z, *_: shown.append(z) or torch.zeros((), requires_grad=True)
    )
    loss = module.training_step(batch, 0)
    assert module.logged["train/corrected"] == pytest.approx(0.01, rel=1e-4)
    streams = module.logged["train/upstream"] + module.logged["train/downstream"]
    assert loss.item() == pytest.approx(streams + 0.03, rel=1e-4)
    torch.testing.assert_close(shown[0], z_0 + 0.1)  # the picture is of the corrected latent


def test_a_corrector_alone_leaves_the_streams_as_they_are() -> None:
    module = make(CORRECTOR, "training.diffusion.corrector_alone=true")
    learning = {n for n, p in module.named_parameters() if p.requires_grad}
    assert learning
    assert all(n.startswith("engine.qdm.corrector.") for n in learning)
    loss = module.training_step(make_batch(), 0)
    assert loss.item() == pytest.approx(module.logged["train/corrected"], rel=1e-6)
    loss.backward()
    with_gradient = {n for n, p in module.named_parameters() if p.grad is not None}
    assert with_gradient == learning
    with pytest.raises(MedQDMError, match=r"must go with transformer\.corrector, got none"):
        make("training.diffusion.corrector_alone=true")


def test_a_corrector_learns_from_a_step_per_region() -> None:
    module = make(CORRECTOR, "training.diffusion.region_steps_share=1")
    module.training_step(make_batch(), 0).backward()
    corrector = module.engine.qdm.corrector
    assert corrector is not None
    assert corrector.last.weight.grad is not None
    assert corrector.last.weight.grad.abs().max() > 0


def test_steps_are_drawn_in_their_shares() -> None:
    torch.manual_seed(0)
    z_0 = torch.zeros(50_000, 1, 16, 16)
    t = make("training.diffusion.first_step_share=0.25").draw_steps(z_0)
    assert (t == 14).float().mean().item() == pytest.approx(0.25 + 0.75 / 15, abs=0.01)
    assert (t == 3).float().mean().item() == pytest.approx(0.75 / 15, abs=0.01)
    t = make("training.diffusion.region_steps_share=1").draw_steps(torch.zeros(4, 1, 32, 64))
    assert t.shape == (4, 1, 32, 64)
    windows = t.unfold(2, 16, 16).unfold(3, 16, 16).flatten(-2)
    assert (windows == windows[..., :1]).all()
    assert len(windows[..., 0].unique()) > 5


@pytest.mark.parametrize("packing", ["windows", "tokens"])
def test_a_fixed_batch_is_learnt(packing: str) -> None:
    module = make("diffusion.num_steps=2", f"transformer.packing={packing}")
    optimizer = module.configure_optimizers()["optimizer"]
    losses = []
    for step in range(50):
        torch.manual_seed(3)
        loss = module.training_step(make_batch(), step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_the_autoencoder_stays_as_it_is() -> None:
    module = make()
    module.training_step(make_batch(), 0).backward()
    assert all(p.grad is None for p in module.engine.autoencoder.parameters())
    assert all(p.grad is not None for p in module.engine.qdm.parameters())
    optimizer = module.configure_optimizers()["optimizer"]
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in module.engine.qdm.parameters()}


LIGHT = "autoencoder.light={channels: 8, encoder_blocks: 1, decoder_blocks: 1}"


@pytest.mark.parametrize("kind", [(), (LIGHT,)])
def test_an_image_loss_trains_the_decoder_too(kind: tuple[str, ...]) -> None:
    module = make(*kind, "training.diffusion.image_weight=0.5")
    loss = module.training_step(make_batch(), 0)
    logged = module.logged
    assert loss.item() == pytest.approx(
        logged["train/upstream"] + logged["train/downstream"] + 0.5 * logged["train/image"],
        rel=1e-5,
    )
    loss.backward()
    autoencoder = module.engine.autoencoder
    trained = {n for n, p in autoencoder.named_parameters() if p.grad is not None}
    assert trained
    assert all(name.startswith("decoder.") for name in trained)  # latents keep their meaning
    held = {id(p) for g in module.configure_optimizers()["optimizer"].param_groups
            for p in g["params"]}  # fmt: skip
    assert {id(p) for p in autoencoder.decoder.parameters()} <= held


def image_loss_of_differences(
    monkeypatch: pytest.MonkeyPatch, kind: str, differences: list[float]
) -> float:
    """The image loss of a batch whose samples are off by a constant each."""
    module = make("training.diffusion.image_weight=1", f"training.diffusion.image_loss={kind}")
    monkeypatch.setattr(
        module.engine, "decode", lambda _z, lr: lr.repeat_interleave(4, 2).repeat_interleave(4, 3)
    )
    count = len(differences)
    hr = torch.tensor(differences)[:, None, None, None].expand(count, 1, 64, 64)
    lr = torch.zeros(count, 1, 16, 16)
    return module.image_loss(torch.zeros(count, 3, 16, 16), lr, hr).item()


@pytest.mark.parametrize(("kind", "expected"), [("l1", 0.75), ("l2", 0.625)])
def test_the_image_loss_is_absolute_or_squared(
    monkeypatch: pytest.MonkeyPatch, kind: str, expected: float
) -> None:
    assert image_loss_of_differences(monkeypatch, kind, [0.5, 1.0]) == expected


def test_the_logarithm_of_the_image_loss_counts_decibels_of_each_sample(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def loss(*differences: float) -> float:
        return image_loss_of_differences(monkeypatch, "log", list(differences))

    # twice the error is 6 dB more, wherever it is
    assert loss(1.0) - loss(0.5) == pytest.approx(math.log(4), rel=0.01)
    assert loss(0.5, 0.5) == pytest.approx(loss(0.5))
    assert loss(0.5, 1.0) == pytest.approx((loss(0.5) + loss(1.0)) / 2)
    # far below the floor it is the squared error itself
    assert loss(0.002) / loss(0.001) == pytest.approx(4, rel=0.01)
    assert loss(10**-1.5) == pytest.approx(math.log(2))  # the floor, 36 dB of a range of 2


def test_the_gradient_term_sees_steps_and_no_offset() -> None:
    y, x = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    truth = torch.zeros(2, 1, 8, 8)
    assert gradient_error(truth + 0.5, truth) == 0
    assert gradient_error((0.1 * x).expand(2, 1, 8, 8), truth).item() == pytest.approx(0.05)
    plane = (0.1 * y - 0.3 * x).expand(2, 1, 8, 8)
    assert gradient_error(plane, truth).item() == pytest.approx(0.2)


def test_terms_of_the_image_loss_add_by_their_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    hr = torch.rand(2, 1, 64, 64, generator=generator) * 1.6 - 0.8
    shown = hr + 0.2 * torch.randn(hr.shape, generator=generator)
    shown = shown.clamp(-1, 1)

    def loss(*settings: str) -> float:
        module = make("training.diffusion.image_weight=1", *settings)
        monkeypatch.setattr(module.engine, "decode", lambda _z, _lr: shown)
        with torch.autocast("cpu", torch.bfloat16):  # as in training
            value = module.image_loss(torch.zeros(2, 3, 16, 16), torch.zeros(2, 1, 16, 16), hr)
        return value.item()

    plain, window = loss(), Window(0, 2000)
    gradient = loss("training.diffusion.gradient_weight=3") - plain
    assert gradient == pytest.approx(3 * gradient_error(shown, hr).item(), rel=1e-4)
    similarity = [metrics.ssim(1000 * a[0].numpy(), 1000 * b[0].numpy(), window)
                  for a, b in zip(shown, hr, strict=True)]  # fmt: skip
    dissimilarity = loss("training.diffusion.ssim_weight=2") - plain
    assert dissimilarity == pytest.approx(2 * (1 - sum(similarity) / 2), abs=1e-5)


@pytest.mark.parametrize("name", ["gradient_weight", "ssim_weight"])
def test_terms_of_the_image_loss_need_one(name: str) -> None:
    with pytest.raises(MedQDMError, match=f"{name} must be 0 without image_weight, got 1; set it"):
        make(f"training.diffusion.{name}=1")


def test_ssim_needs_a_crop_it_fits_in() -> None:
    settings = [f"training.diffusion.{name}_weight=1" for name in ("image", "ssim")]
    make(*settings, "training.autoencoder.crop_px=12")
    with pytest.raises(MedQDMError, match="crop_px must be at least 12 for ssim_weight, got 8"):
        make(*settings, "training.autoencoder.crop_px=8")


def test_a_crop_of_the_image_loss_is_of_whole_latents() -> None:
    settings = [f"training.diffusion.{name}_weight=1" for name in ("image", "ssim")]
    module = make(*settings, "training.autoencoder.crop_px=15")
    assert module.training_step(make_batch(), 0).isfinite()


def test_the_image_loss_compares_the_same_place(monkeypatch: pytest.MonkeyPatch) -> None:
    module = make("training.diffusion.image_weight=1", "training.autoencoder.crop_px=16")
    y, x = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    places = (16 * y + x)[None, None] / 256  # every latent another value
    hr = nn.functional.interpolate(places, scale_factor=4, mode="nearest")
    shown = []

    def decode(z: Tensor, lr: Tensor) -> Tensor:
        assert torch.equal(z, lr)
        shown.append(z)
        return nn.functional.interpolate(z, scale_factor=4, mode="nearest")

    monkeypatch.setattr(module.engine, "decode", decode)
    torch.manual_seed(0)
    for _ in range(8):
        assert module.image_loss(places, places, hr) == 0
    assert {tuple(z.shape) for z in shown} == {(1, 1, 4, 4)}
    assert len({float(z[0, 0, 0, 0]) for z in shown}) > 3


def test_the_perceptual_term_sees_the_decoded_prediction() -> None:
    distance = Distance()
    module = make("training.diffusion.perceptual_weight=0.1", perceptual=distance)
    loss = module.training_step(make_batch(), 0)
    image, reference = distance.shown
    assert torch.equal(reference, make_batch()["hr"])
    assert image.shape == reference.shape
    logged = module.logged
    assert loss.item() == pytest.approx(
        logged["train/upstream"] + logged["train/downstream"] + 0.1 * logged["train/lpips"],
        rel=1e-5,
    )
    assert image.requires_grad  # through the frozen decoder to the transformer


def test_a_loss_that_is_not_finite_names_the_slices() -> None:
    batch = make_batch()
    batch["hr"][1] = torch.nan
    with pytest.raises(MedQDMError, match=r"got nan for slices a\[0\], a\[1\]; look at these"):
        make().training_step(batch, 0)
