"""The rivals' networks, and their weights files."""

from pathlib import Path

import numpy as np
import pytest
import torch

from medqdm import checkpoint
from medqdm.build import build_autoencoder
from medqdm.config import ResShiftSection, Task, override
from medqdm.enhancer import Enhancer
from medqdm.errors import MedQDMError
from medqdm.picture import upsample_bicubic
from studies.baselines import open_any, rival_task
from studies.baselines.networks import EDSR, LatentUNet
from studies.baselines.weights import build_edsr, build_unet, resshift_engine, save

SMALL_EDSR = ("rival.width=8", "rival.blocks=2")
SMALL_UNET = ("rival.channels=[32, 32]", "autoencoder.latent_scale=1")


def randomize(network: torch.nn.Module) -> None:
    """Fill what is zero at first, so that the network draws something."""
    torch.manual_seed(3)
    for parameter in network.parameters():
        if parameter.abs().max() == 0:
            torch.nn.init.normal_(parameter, std=0.1)


@pytest.fixture
def edsr(tmp_path: Path) -> Path:
    """Weights of an EDSR that draws something."""
    task = rival_task("edsr", "tiny", SMALL_EDSR)
    torch.manual_seed(0)
    network = build_edsr(task)
    randomize(network)
    save(tmp_path / "edsr.safetensors", network, task=task, record={"rival": {"steps": 7}})
    return tmp_path / "edsr.safetensors"


@pytest.fixture
def resshift(tmp_path: Path) -> Path:
    """Weights of a ResShift rival that draws something."""
    task = rival_task("resshift", "tiny", SMALL_UNET)
    torch.manual_seed(0)
    engine = resshift_engine(task, build_autoencoder(task), build_unet(task))
    randomize(engine.qdm)
    save(tmp_path / "resshift.safetensors", engine, task=task, record={})
    return tmp_path / "resshift.safetensors"


def lr_hu(seed: int = 0) -> np.ndarray:
    """``(16, 24)`` HU within the window."""
    return np.random.default_rng(seed).uniform(-900, 900, (16, 24)).astype(np.float32)


def test_a_regression_network_fuses_pixels_whatever_the_task_s_autoencoder(tmp_path: Path) -> None:
    light = "autoencoder.light={channels: 16, encoder_blocks: 1, decoder_blocks: 1}"
    outputs = []
    for name, settings in (("kl", SMALL_EDSR), ("light", (*SMALL_EDSR, light))):
        task = rival_task("edsr", "tiny", settings)
        torch.manual_seed(0)
        network = build_edsr(task)
        randomize(network)
        path = tmp_path / f"{name}.safetensors"
        save(path, network, task=task, record={})
        enhancer = Enhancer(open_any(path), device="cpu", precision="fp32", draws=2)
        outputs.append(enhancer.enhance_slice(lr_hu()))
    np.testing.assert_array_equal(outputs[0].hu, outputs[1].hu)
    assert np.abs(outputs[0].hu - upsample_bicubic(lr_hu(), 4)).max() > 10
    assert not outputs[1].deviation_hu.any()


@pytest.mark.parametrize("upscale", [2, 4, 8])
def test_an_untrained_edsr_is_bicubic_exactly(upscale: int) -> None:
    network = EDSR(width=12, blocks=2, upscale=upscale)
    lr = torch.rand(2, 1, 7, 10) * 2 - 1
    out = network(lr)
    assert out.shape == (2, 1, 7 * upscale, 10 * upscale)
    bicubic = upsample_bicubic(lr[0, 0].numpy(), upscale).clip(-1, 1)
    np.testing.assert_array_equal(out[0, 0].detach().numpy(), bicubic)


def test_an_edsr_learns_in_every_layer_after_its_first_steps() -> None:
    torch.manual_seed(0)
    network = EDSR(width=8, blocks=2, upscale=4)
    lr, hr = torch.rand(2, 1, 8, 8), torch.rand(2, 1, 32, 32)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    for _ in range(4):  # zero layers let gradients pass one after the other
        optimizer.zero_grad()
        (network(lr) - hr).abs().mean().backward()
        optimizer.step()
    assert all(not torch.equal(v, before[name]) for name, v in network.state_dict().items())


def test_width_and_blocks_are_what_they_say() -> None:
    network = build_edsr(rival_task("edsr", "sr4-t", ["rival.width=24", "rival.blocks=3"]))
    blocks = [part for part in network.body if hasattr(part, "conv1")]
    assert len(blocks) == 3
    assert {part.conv1.weight.shape for part in blocks} == {(24, 24, 3, 3)}


def test_the_u_net_sees_the_lr_image_and_the_step() -> None:
    torch.manual_seed(0)
    network = LatentUNet(
        latent_channels=3, condition_channels=1, channels=(32, 32), res_blocks=1, attention_levels=1
    )
    z_t, lr = torch.randn(2, 3, 16, 32), torch.rand(2, 1, 8, 16)
    assert network(z_t, torch.tensor([3]), lr).abs().max() == 0  # its last layer is zero
    randomize(network)
    with torch.no_grad():
        out = network(z_t, torch.tensor([3]), lr)
        assert out.shape == z_t.shape
        torch.testing.assert_close(network(z_t, torch.tensor([3, 3]), lr), out)
        assert (network(z_t, torch.tensor([4]), lr) - out).abs().max() > 1e-3
        assert (network(z_t, torch.tensor([3]), lr + 0.5) - out).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("rival.channels=[64, 48]", r"--set: rival.channels.1: .*multiple of 32, got 48"),
        ("rival.width=8", r"--set: rival.width must be a known setting"),
        ("rival.res_blocks=0", r"--set: rival.res_blocks: .*greater than 0, got 0"),
    ],
)
def test_settings_that_do_not_fit_a_rival_are_refused(setting: str, message: str) -> None:
    with pytest.raises(MedQDMError, match=message):
        rival_task("resshift", "tiny", [setting])


def test_an_unknown_rival_is_refused() -> None:
    with pytest.raises(MedQDMError, match="no rival 'srcnn': expected one of edsr, resshift"):
        rival_task("srcnn", "tiny")


def test_edsr_weights_come_back_from_their_file(edsr: Path) -> None:
    opened = open_any(edsr)
    task = opened.engine.task
    assert task == rival_task("edsr", "tiny", SMALL_EDSR)
    assert opened.record == {"rival": {"steps": 7}}
    torch.manual_seed(0)
    network = build_edsr(task)
    randomize(network)
    lr = torch.rand(1, 1, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(opened.engine.network(lr), network(lr), atol=1e-3, rtol=0)


def test_an_edsr_enhances_slices_and_draws_nothing(edsr: Path) -> None:
    done = [
        Enhancer(open_any(edsr), device="cpu", precision="fp32", seed=seed).enhance_slice(lr_hu())
        for seed in (0, 1)
    ]
    assert done[0].hu.shape == (64, 96)
    assert not done[0].refined.any()
    np.testing.assert_array_equal(done[0].hu, done[1].hu)
    bicubic = upsample_bicubic(lr_hu(), 4)
    assert np.abs(done[0].hu - bicubic).max() > 1


def test_a_resshift_rival_draws_everywhere(resshift: Path) -> None:
    def enhance(seed: int, *settings: str) -> np.ndarray:
        enhancer = Enhancer(open_any(resshift, settings), device="cpu", precision="fp32", seed=seed)
        done = enhancer.enhance_slice(lr_hu())
        assert done.refined.all()
        assert np.isfinite(done.hu).all()
        return done.hu

    first = enhance(0, "diffusion.sampling_steps=2")
    assert first.shape == (64, 96)
    np.testing.assert_array_equal(first, enhance(0, "diffusion.sampling_steps=2"))
    assert np.abs(first - enhance(1, "diffusion.sampling_steps=2")).max() > 1e-3
    assert np.abs(first - enhance(0, "diffusion.sampling_steps=4")).max() > 1e-3


def test_a_resshift_rival_runs_whole_in_bf16(resshift: Path) -> None:
    opened = open_any(resshift, ["diffusion.sampling_steps=1"])
    found = [
        Enhancer(opened, device="cpu", precision=precision).enhance_slice(lr_hu()).hu
        for precision in ("fp32", "bf16")
    ]
    assert np.abs(found[0] - found[1]).mean() < 20


def test_a_resshift_rival_has_no_regions_to_sample_in(resshift: Path) -> None:
    with pytest.raises(MedQDMError, match="must be uniform for a ResShift rival"):
        open_any(resshift, ["diffusion.sampler.name=gain"])


def test_a_resshift_task_is_its_own_stage_two_without_regions() -> None:
    task, plain = rival_task("resshift", "sr4-t"), rival_task("edsr", "sr4-t")
    assert isinstance(task.rival, ResShiftSection)
    assert (task.quadtree.threshold, task.quadtree.inclusive) == (0, True)
    assert task.training.diffusion.mask_training == "none"
    same = {"image_weight", "first_step_share", "batch_size", "learning_rate"}
    assert task.training.diffusion.model_dump(include=same) == (
        plain.training.diffusion.model_dump(include=same)
    )
    assert task.diffusion == plain.diffusion
    assert task.degradation == plain.degradation


def test_open_any_opens_a_qdm_too(weights: Path) -> None:
    assert open_any(weights, ["quadtree.threshold=0"]).engine.task.threshold_hu == 0


def test_the_model_s_own_loader_refuses_a_rival(edsr: Path) -> None:
    with pytest.raises(
        MedQDMError, match=r"edsr.safetensors: must be weights of a QDM, got a rival's \(edsr\)"
    ):
        Enhancer(edsr)


def test_weights_of_another_size_are_refused(edsr: Path, tmp_path: Path) -> None:
    stored = checkpoint.read_networks(edsr)
    other: Task = override(stored.task, ["rival.width=16"])
    with pytest.raises(MedQDMError, match="weights must fit their task"):
        save(tmp_path / "x.safetensors", open_any(edsr).engine.network, task=other, record={})
    assert not (tmp_path / "x.safetensors").exists()
