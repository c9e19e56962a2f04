import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medqdm.errors import MedQDMError
from medqdm.models.windows import WindowIndex


def random_index(b: int, rows: int, columns: int, seed: int) -> WindowIndex:
    generator = torch.Generator().manual_seed(seed)
    return WindowIndex(torch.rand(b, 8 * rows, 8 * columns, generator=generator) > 0.99)


shapes = {
    "b": st.integers(1, 3),
    "rows": st.integers(1, 4),
    "columns": st.integers(1, 4),
    "seed": st.integers(0, 1000),
}


@settings(max_examples=20, deadline=None)
@given(**shapes)
def test_gather_then_scatter_restores_active_windows(b, rows, columns, seed):
    windows = random_index(b, rows, columns, seed)
    latent = torch.randn(b, 2, 16 * rows, 16 * columns)
    restored = windows.scatter(windows.gather(latent), torch.zeros_like(latent))
    assert torch.equal(restored, latent * windows.active)


@settings(max_examples=20, deadline=None)
@given(**shapes)
def test_pack_keeps_windows_with_their_slice(b, rows, columns, seed):
    windows = random_index(b, rows, columns, seed)
    number = torch.arange(windows.count, dtype=torch.float32) + 1
    tokens = number[:, None, None].expand(-1, 64, 2)
    packed = windows.pack(tokens)
    assert torch.equal(windows.unpack(packed, tokens=64), tokens)
    for i in range(b):
        assert set(packed[i].unique().tolist()) - {0.0} == set(number[windows.slices == i].tolist())


def test_active_windows_are_those_with_a_refined_token():
    refined = torch.zeros(2, 16, 24, dtype=torch.bool)
    refined[0, 15, 0] = refined[1, 0, 23] = refined[1, 7, 16] = True
    windows = WindowIndex(refined)
    assert windows.count == 2
    assert windows.slices.tolist() == [0, 1]
    assert windows.places.tolist() == [3, 2]
    assert windows.active.sum() == 2 * 16 * 16
    assert windows.active[0, 0, 16:, :16].all()
    assert windows.active[1, 0, :16, 32:].all()
    assert windows.refined.sum() == 3 * 4
    assert windows.refined[0, 0, 30:, :2].all()


def test_windows_lie_row_by_row():
    latent = torch.arange(32.0)[:, None] * 100 + torch.arange(48.0)
    windows = WindowIndex.everywhere((1, 32, 48), latent.device)
    corners = windows.gather(latent[None, None])[:, 0, 0, 0]
    assert corners.tolist() == [0, 16, 32, 1600, 1616, 1632]


def test_sides_that_windows_do_not_fill_are_refused():
    with pytest.raises(MedQDMError, match=r"multiples of 16, got \(24, 32\); pad"):
        WindowIndex(torch.ones(1, 12, 16, dtype=torch.bool))
