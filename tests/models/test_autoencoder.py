import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medqdm.models.autoencoder import KLAutoencoder, MidAttention


def make_autoencoder(*, mid_attention: bool = True, channels: tuple[int, ...] = (8, 16, 16)):
    torch.manual_seed(0)
    return KLAutoencoder(
        image_channels=1,
        latent_channels=3,
        channels=channels,
        num_res_blocks=1,
        norm_groups=8,
        mid_attention=mid_attention,
    ).eval()


@pytest.fixture(scope="module")
def network():
    return make_autoencoder()


@settings(max_examples=8, deadline=None)
@given(b=st.integers(1, 2), rows=st.integers(2, 12), columns=st.integers(2, 12))
@torch.inference_mode()
def test_shapes_follow_the_compression(network, b, rows, columns):
    image = torch.rand(b, 1, 4 * rows, 4 * columns)
    mean, log_variance = network.moments(image)
    assert mean.shape == log_variance.shape == (b, 3, rows, columns)
    assert network.decode(mean).shape == image.shape


@pytest.mark.parametrize(("channels", "compression"), [((8,), 1), ((8, 8), 2), ((8,) * 4, 8)])
@torch.inference_mode()
def test_compression_follows_the_levels(channels, compression):
    network = make_autoencoder(channels=channels)
    assert network.compression == compression
    assert network.encode(torch.zeros(1, 1, 32, 16)).shape[2:] == (
        32 // compression,
        16 // compression,
    )


@torch.inference_mode()
def test_encode_is_the_mode_and_sample_spreads_around_it(network):
    image = torch.rand(1, 1, 16, 16)
    mean, log_variance = network.moments(image)
    assert torch.equal(network.encode(image), mean)
    assert torch.equal(network(image), network.decode(mean))
    generator = torch.Generator().manual_seed(0)
    draws = torch.cat([network.sample(image, generator) for _ in range(400)])
    deviation = (log_variance / 2).exp()
    assert ((draws.mean(0) - mean).abs() < 5 * deviation / 20).all()
    torch.testing.assert_close(draws.std(0), deviation[0], rtol=0.25, atol=0)


@torch.inference_mode()
def test_sample_repeats_with_its_generator(network):
    image = torch.rand(1, 1, 16, 16)
    first, again, other = (
        network.sample(image, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@torch.inference_mode()
def test_mid_attention_equals_the_plain_formula():
    torch.manual_seed(0)
    layer = MidAttention(channels=16, norm_groups=8)
    x = torch.randn(2, 16, 5, 3)
    q, k, v = layer.qkv(layer.norm(x)).flatten(2).chunk(3, dim=1)  # (b, c, places)
    weights = torch.softmax(torch.einsum("bci,bcj->bij", q, k) / 4, dim=2)
    mixed = torch.einsum("bij,bcj->bci", weights, v).reshape(x.shape)
    torch.testing.assert_close(layer(x), x + layer.proj(mixed))


@torch.inference_mode()
def test_without_attention_the_picture_stays_local():
    image = torch.rand(1, 1, 96, 32)
    changed = image.clone()
    changed[..., :4, :] += 1
    for mid_attention in (True, False):
        network = make_autoencoder(mid_attention=mid_attention)
        # GroupNorm sees the whole picture: freeze its statistics by taking it out.
        for parent in network.modules():
            for name, child in parent.named_children():
                if isinstance(child, torch.nn.GroupNorm):
                    setattr(parent, name, torch.nn.Identity())
        difference = (network.encode(image) - network.encode(changed)).abs()
        assert bool(difference[..., -1, :].any()) == mid_attention


@torch.inference_mode()
def test_channels_last_and_bf16_stay_close(network):
    image = torch.rand(1, 1, 32, 32)
    expected = network(image)
    last = network(image.to(memory_format=torch.channels_last))
    torch.testing.assert_close(last, expected, atol=1e-5, rtol=1e-4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = network(image)
    assert (rough.float() - expected).abs().mean() < 0.05 * expected.abs().mean()


def test_every_parameter_gets_a_gradient(network):
    image = torch.rand(1, 1, 16, 16)
    mean, log_variance = network.moments(image)
    (network.decode(mean).square().mean() + log_variance.square().mean()).backward()
    silent = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    network.zero_grad()
    assert not silent
