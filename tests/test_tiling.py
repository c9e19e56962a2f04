import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medqdm.errors import MedQDMError
from medqdm.tiling import Fusion, gaussian_weights, tile_starts


@given(st.integers(1, 2000), st.integers(1, 200), st.data())
def test_tiles_cover_the_axis_and_stay_inside(length: int, tile: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, tile))
    starts = tile_starts(length, tile, stride)
    assert starts[0] == 0
    assert starts[-1] + tile >= length
    assert starts[-1] == max(0, length - tile)
    assert all(0 < b - a <= stride for a, b in itertools.pairwise(starts))


def test_stride_longer_than_the_tile_is_refused() -> None:
    with pytest.raises(MedQDMError, match="stride must be 1 to the tile's 128"):
        tile_starts(300, 128, 129)


def test_weights_of_the_paper() -> None:
    weights = gaussian_weights(512)
    sigma = 0.3 * (511 / 2 - 1) + 0.8
    assert weights.dtype == torch.float64
    assert float(weights[0]) == pytest.approx(
        float(torch.exp(torch.tensor(-(255.5**2) / 2 / sigma**2)))
    )
    torch.testing.assert_close(weights, weights.flip(0))


def test_tiles_of_one_picture_fuse_to_it() -> None:
    whole = torch.rand(2, 50, 70)
    fusion = Fusion(2, 50, 70)
    for y in tile_starts(50, 32, 24):
        for x in tile_starts(70, 32, 24):
            fusion.add(whole[:, y : y + 32, x : x + 32], y, x)
    torch.testing.assert_close(fusion.result(), whole)


def test_overlap_is_weighted_towards_the_nearer_tile() -> None:
    fusion = Fusion(8, 12)
    fusion.add(torch.zeros(8, 8), 0, 0)
    fusion.add(torch.ones(8, 8), 0, 4)
    row = fusion.result()[4]
    assert (row[:4] == 0).all()
    assert (row[8:] == 1).all()
    assert (row[4:8].diff() > 0).all()
    assert float(row[5] + row[6]) == pytest.approx(1)
