"""The limits of region-adaptive diffusion, on a small random network."""

import pytest
import torch

from medqdm import checkpoint
from medqdm.config import Task, load_task
from medqdm.engine import Engine, autocast, is_bf16_fast
from medqdm.errors import MedQDMError
from medqdm.models.windows import WindowIndex


def make(*settings: str) -> Engine:
    task: Task = load_task("tiny", ["autoencoder.latent_scale=0.8", *settings])
    torch.manual_seed(0)
    autoencoder, qdm = checkpoint.build_autoencoder(task), checkpoint.build_qdm(task)
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
    engine = Engine(task, checkpoint.build_autoencoder(task), checkpoint.build_qdm(task))
    with pytest.raises(MedQDMError, match="latent_scale must be a number, got none"):
        engine.encode(engine.upsample(lr))


def test_precision_follows_the_device() -> None:
    cpu = torch.device("cpu")
    for precision, expected in (("fp32", False), ("bf16", True), ("auto", is_bf16_fast(cpu))):
        with autocast(cpu, precision):
            assert torch.is_autocast_enabled("cpu") is expected
