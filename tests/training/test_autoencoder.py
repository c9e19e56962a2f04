"""Stage one: what its loss is made of, and whose weights each part moves."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from medqdm.build import build_autoencoder
from medqdm.config import load_task
from medqdm.errors import MedQDMError
from medqdm.training.autoencoder import AutoencoderModule


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Distance(nn.Module):
    """Stands in for LPIPS."""

    def forward(self, image: Tensor, reference: Tensor) -> Tensor:
        return ((image - reference) ** 2).mean(dim=(1, 2, 3))


def make(*settings: str, perceptual: Any = None, light: bool = False) -> AutoencoderModule:
    """A module outside a trainer: its log is a dict, its step is 0."""
    torch.manual_seed(0)
    kind = ["autoencoder.light={channels: 8, encoder_blocks: 1, decoder_blocks: 1}"] * light
    task = load_task("tiny", [*kind, *(f"training.autoencoder.{item}" for item in settings)])
    module = AutoencoderModule(task, build_autoencoder(task), perceptual)
    module.logged = {}
    module.log = lambda name, value, **_: module.logged.update({name: float(value.detach())})
    module.log_dict = lambda values: [module.log(*item) for item in values.items()]
    return module


def make_batch(count: int = 4, px: int = 32) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    lr = torch.rand(count, 1, px // 4, px // 4, generator=generator) * 1.6 - 0.8
    hr = nn.functional.interpolate(lr, scale_factor=4, mode="nearest")
    return {"hr": hr, "lr": lr, "patient": ["a"] * count, "slice": torch.arange(count)}


@pytest.mark.parametrize(("share", "count"), [(0.0, 0), (0.25, 1), (1.0, 4)])
def test_a_share_of_the_batch_is_upsampled_lr(share: float, count: int) -> None:
    batch = make_batch()
    images, target = make(f"lr_share={share}")._images(batch)
    assert images is target  # what the KL-VAE encodes, it gives back
    assert images.shape == batch["hr"].shape
    assert images.abs().max() <= 1
    same = [torch.equal(a, b) for a, b in zip(images, batch["hr"], strict=True)]
    assert same == [False] * count + [True] * (4 - count)


def test_the_light_decoder_makes_hr_of_both() -> None:
    batch, module = make_batch(), make("lr_share=0.5", light=True)
    images, target = module._images(batch)
    assert torch.equal(target, batch["hr"])
    assert not torch.equal(images[:2], target[:2])
    assert torch.equal(images[2:], target[2:])
    loss = module.training_step(batch, 0)
    up = nn.functional.interpolate(batch["lr"], scale_factor=4, mode="bicubic").clamp(-1, 1)
    expected = (up - batch["hr"]).abs().mean()  # untrained, it gives the bicubic image
    assert module.logged["train/l1"] == pytest.approx(expected.item(), rel=1e-5)
    loss.backward()
    module.validation_step(batch, 0)
    assert module.logged["validation/psnr_hr"] == pytest.approx(
        module.logged["validation/psnr_lr"], abs=1e-3
    )


def test_the_loss_is_l1_and_weighted_kl() -> None:
    module = make("kl_weight=0.01", "lr_share=0")
    with torch.no_grad():
        mean, log_variance = module.autoencoder.moments(make_batch()["hr"])
        loss = module.training_step(make_batch(), 0)
    slow = torch.distributions.kl_divergence(
        torch.distributions.Normal(mean, torch.exp(log_variance / 2)),
        torch.distributions.Normal(torch.zeros_like(mean), torch.ones_like(mean)),
    )
    assert module.logged["train/kl"] == pytest.approx(slow.sum().item() / 4, rel=1e-4)
    assert loss.item() == pytest.approx(
        module.logged["train/l1"] + 0.01 * module.logged["train/kl"], rel=1e-5
    )


def test_the_perceptual_term_is_added_with_its_weight() -> None:
    loss = []
    for weight in (0.0, 0.5):
        module = make("kl_weight=0", f"perceptual_weight={weight}", perceptual=Distance())
        with torch.no_grad():
            torch.manual_seed(2)
            loss.append(module.training_step(make_batch(), 0).item())
    assert loss[1] - loss[0] == pytest.approx(0.5 * module.logged["train/lpips"], rel=1e-3)


def gradients(module: AutoencoderModule, loss: Tensor) -> tuple[float, float]:
    """Largest gradient in the autoencoder and in the discriminator."""
    assert module.discriminator is not None
    module.zero_grad()
    loss.backward()
    largest = [
        max((p.grad.abs().max().item() for p in part.parameters() if p.grad is not None), default=0)
        for part in (module.autoencoder, module.discriminator)
    ]
    return largest[0], largest[1]


def test_each_side_of_the_adversarial_term_moves_its_own_weights() -> None:
    module = make("adversarial_weight=1", "adversarial_start=0")
    image = make_batch()["hr"]

    def total(weight: float) -> Tensor:
        module.settings = module.settings.model_copy(update={"adversarial_weight": weight})
        return module._adversarial_loss(module.autoencoder(image), image)

    autoencoder, discriminator = gradients(module, total(0.0))  # the discriminator's part alone
    assert autoencoder == 0
    assert discriminator > 0
    autoencoder, again = gradients(module, total(1.0))
    assert autoencoder > 0
    # the generator's part leaves the discriminator's gradient as it was
    assert again == pytest.approx(discriminator, rel=1e-4)


def test_the_adversarial_term_waits_for_its_start() -> None:
    module = make("adversarial_weight=1", "adversarial_start=1")
    module.training_step(make_batch(), 0)
    assert "train/generator" not in module.logged
    module = make("adversarial_weight=1", "adversarial_start=0")
    module.training_step(make_batch(), 0)
    assert {"train/generator", "train/discriminator"} <= module.logged.keys()


def test_the_optimiser_holds_both_sides_and_no_frozen_weights() -> None:
    frozen = nn.Linear(2, 2).requires_grad_(False)
    module = make("adversarial_weight=1", "adversarial_start=0", perceptual=frozen)
    optimizer = module.configure_optimizers()["optimizer"]
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert module.discriminator is not None
    wanted = [*module.autoencoder.parameters(), *module.discriminator.parameters()]
    assert held == {id(p) for p in wanted}


@pytest.mark.parametrize("settings", [(), ("adversarial_weight=0.01", "adversarial_start=0")])
def test_a_fixed_batch_is_learnt(settings: tuple[str, ...]) -> None:
    module = make("learning_rate=5e-3", *settings)
    optimizer = module.configure_optimizers()["optimizer"]
    batch = make_batch()
    l1 = []
    for step in range(40):
        loss = module.training_step(batch, step)
        l1.append(module.logged["train/l1"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert l1[-1] < 0.6 * l1[0]


def test_a_loss_that_is_not_finite_names_the_slices() -> None:
    module = make()
    batch = make_batch(2)
    batch["hr"][1, 0, 3, 3] = torch.nan
    with pytest.raises(MedQDMError, match=r"got nan for slices a\[0\], a\[1\]; look at these"):
        module.training_step(batch, 0)


def test_warm_up_and_cosine() -> None:
    task = load_task(
        "tiny",
        ["training.warmup_steps=4", "training.cosine=true", "training.autoencoder.steps=100"],
    )
    module = AutoencoderModule(task, build_autoencoder(task), None)
    made = module.configure_optimizers()
    scheduler, highest = made["lr_scheduler"]["scheduler"], 2e-3
    rates = []
    for _ in range(101):
        rates.append(scheduler.get_last_lr()[0] / highest)
        made["optimizer"].step()
        scheduler.step()
    assert made["lr_scheduler"]["interval"] == "step"
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates[52] == pytest.approx(0.505, abs=0.02)
    assert rates[100] == pytest.approx(0.01, abs=0.001)
    assert all(a >= b for a, b in pairwise(rates[4:]))
