import pytest
import torch
from torch.nn import functional

from medqdm.models.light import LightAutoencoder


@pytest.mark.parametrize(("upscale", "compression"), [(2, 4), (4, 4), (8, 4), (4, 8), (4, 2)])
@torch.inference_mode()
def test_sizes_of_every_factor(make, upscale, compression):
    network = make(upscale, compression)
    image = torch.rand(2, 1, 64, 96) * 2 - 1
    lr = functional.avg_pool2d(image, upscale)
    z = network.encode(image)
    assert z.shape == (2, 3, 64 // compression, 96 // compression)
    assert network.decode(z, lr).shape == image.shape


@torch.inference_mode()
def test_untrained_decoder_gives_the_bicubic_image():
    network = LightAutoencoder(
        image_channels=1,
        latent_channels=3,
        compression=4,
        channels=8,
        encoder_blocks=1,
        decoder_blocks=1,
        upscale=8,
    )
    lr = torch.rand(1, 1, 8, 8) * 2 - 1
    up = functional.interpolate(lr, scale_factor=8, mode="bicubic").clamp(-1, 1)
    assert torch.equal(network.decode(torch.randn(1, 3, 16, 16), lr), up)


@pytest.mark.parametrize("upscale", [2, 4, 8])
@torch.inference_mode()
def test_decoder_listens_to_latent_and_lr(make, upscale):
    network = make(upscale)
    z, lr = torch.randn(1, 3, 16, 16), torch.zeros(1, 1, 64 // upscale, 64 // upscale)
    base = network.decode(z, lr)
    assert (network.decode(z + 1, lr) - base).abs().mean() > 1e-3
    other = lr.clone()
    other[..., 0, 0] = 0.3
    changed = network.decode(z, other) - base
    body = changed - functional.interpolate(other, scale_factor=upscale, mode="bicubic").clamp(
        -1, 1
    )
    assert body.abs().max() > 1e-4


@torch.inference_mode()
def test_a_pixel_depends_on_its_neighbourhood_alone(make):
    """Nothing is normalised over space: a tile with a halo decodes to the pixels of the whole."""
    network = make()
    z, lr = torch.randn(1, 3, 48, 48), torch.rand(1, 1, 48, 48)
    halo = 8  # latents: 2 + 2 * 2 convolutions there, 1 at full resolution, the bicubic kernel
    whole = network.decode(z, lr)
    tile = network.decode(z[..., :32, :32], lr[..., :32, :32])
    inside = slice(0, (32 - halo) * 4)
    torch.testing.assert_close(tile[..., inside, inside], whole[..., inside, inside])


def test_posterior_spreads_and_every_parameter_learns(make):
    network = make()
    image = torch.rand(1, 1, 32, 32)
    mean, log_variance = network.moments(image)
    assert torch.equal(network.encode(image), mean)
    z = mean + (log_variance / 2).exp() * torch.randn_like(mean)
    network.decode(z, functional.avg_pool2d(image, 4)).square().mean().backward()
    assert all(p.grad is not None and p.grad.any() for p in network.parameters())
