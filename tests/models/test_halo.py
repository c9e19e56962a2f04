"""Blocks with halos give what one piece gives."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medqdm.models import halo


@given(st.integers(1, 400), st.integers(1, 100), st.integers(0, 60))
def test_blocks_cover_the_axis_once(length: int, block: int, reach: int) -> None:
    found = halo.spans(length, block, reach)
    assert (found[0].start, found[-1].stop) == (0, length)
    assert all(a.stop == b.start for a, b in itertools.pairwise(found))
    for span in found:
        assert 0 < span.stop - span.start <= block
        assert span.first == max(0, span.start - reach)
        assert span.last == min(length, span.stop + reach)


@pytest.mark.parametrize("block", [12, 13])
@pytest.mark.parametrize("compression", [2, 4, 8])
@pytest.mark.parametrize("upscale", [2, 4, 8])
def test_decoded_in_blocks_as_in_one_piece(
    make, upscale: int, compression: int, block: int
) -> None:
    network = make(upscale, compression)
    z = torch.randn(2, 3, 32, 48)
    lr = torch.rand(2, 1, 32 * compression // upscale, 48 * compression // upscale) * 2 - 1
    with torch.no_grad():
        whole = network.decode(z, lr)
    torch.testing.assert_close(halo.decode(network, z, lr, block=block), whole)
    assert torch.equal(halo.decode(network, z, lr), whole)


@pytest.mark.parametrize("compression", [2, 4, 8])
def test_encoded_in_blocks_as_in_one_piece(make, compression: int) -> None:
    network = make(4, compression)
    x = torch.rand(2, 1, 30 * compression, 40 * compression) * 2 - 1
    with torch.no_grad():
        whole = network.encode(x)
    torch.testing.assert_close(halo.encode(network, x, block=12), whole)
    assert torch.equal(halo.encode(network, x), whole)


def test_a_halo_is_as_wide_as_it_must_be_and_no_wider(make) -> None:
    """How far an output really looks, from the gradient."""
    network = make(4)
    for parameter in network.parameters():
        parameter.data.abs_()  # no ReLU hides a path
    x = torch.rand(1, 1, 160, 160, requires_grad=True)
    network.encode(x)[..., 20, 20].sum().backward()
    rows = x.grad[0, 0].abs().sum(dim=1).nonzero().flatten()
    assert rows[0] == 4 * (20 - network.encoder_reach)
    assert rows[-1] == 4 * (20 + network.encoder_reach) + 3
    z = torch.rand(1, 3, 40, 40, requires_grad=True)
    network.decode(z, torch.zeros(1, 1, 40, 40))[..., 80:84, 80:84].sum().backward()
    rows = z.grad[0].abs().sum(dim=(0, 2)).nonzero().flatten()
    assert (rows[0], rows[-1]) == (20 - network.decoder_reach, 20 + network.decoder_reach)


def test_a_halo_that_is_too_narrow_shows(make) -> None:
    network = make(4)
    z, lr = torch.randn(1, 3, 32, 48), torch.rand(1, 1, 32, 48)
    whole = halo.decode(network, z, lr)
    network.decoder_reach -= 4  # two of them are the LR image's
    assert (halo.decode(network, z, lr, block=12) - whole).abs().max() > 1e-3
