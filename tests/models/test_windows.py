import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medqdm.errors import MedQDMError
from medqdm.models.windows import Rows, WindowIndex


def random_index(b: int, rows: int, columns: int, packing: str, seed: int) -> WindowIndex:
    generator = torch.Generator().manual_seed(seed)
    refined = torch.rand(b, 8 * rows, 8 * columns, generator=generator) > 0.99
    return WindowIndex(refined, packing=packing)


shapes = {
    "b": st.integers(1, 3),
    "rows": st.integers(1, 4),
    "columns": st.integers(1, 4),
    "packing": st.sampled_from(["windows", "tokens"]),
    "seed": st.integers(0, 1000),
}


@settings(max_examples=30, deadline=None)
@given(**shapes)
def test_gather_then_scatter_restores_what_exists(b, rows, columns, packing, seed):
    index = random_index(b, rows, columns, packing, seed)
    latent = torch.randn(b, 2, 16 * rows, 16 * columns)
    restored = index.scatter(index.gather(latent), torch.zeros_like(latent))
    assert torch.equal(restored, latent * index.active)
    assert index.count == index.active.sum() // 4
    if packing == "tokens":
        assert torch.equal(index.active, index.refined)


@settings(max_examples=30, deadline=None)
@given(**shapes)
def test_rows_hold_the_tokens_of_their_window_and_slice(b, rows, columns, packing, seed):
    index = random_index(b, rows, columns, packing, seed)
    y, x = torch.meshgrid(torch.arange(16 * rows), torch.arange(16 * columns), indexing="ij")
    window = (y // 16 * columns + x // 16).float().expand(b, 1, -1, -1)
    slices = torch.arange(b).float()[:, None, None, None].expand_as(window)
    marks = torch.stack([index.gather(slices)[:, 0], index.gather(window)[:, 0]], dim=1)
    for layout, columns_of_marks in ((index.windows, [0, 1]), (index.batch, [0])):
        laid_out = layout.lay_out(marks)
        assert torch.equal(layout.take_up(laid_out), marks)
        for row, valid in zip(laid_out, layout.valid, strict=True):
            assert len(row[valid][:, columns_of_marks].unique(dim=0)) <= 1
            assert not row[~valid].any()
    assert index.windows.valid.any(dim=1).all()


@given(st.lists(st.integers(0, 5), min_size=1, max_size=6))
def test_rows_of_any_sizes(sizes):
    row = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    rows = Rows(row, len(sizes))
    assert rows.valid.sum(dim=1).tolist() == sizes
    assert rows.width == max(sizes)
    assert rows.is_full == (len(set(sizes)) == 1)
    tokens = torch.arange(1.0, len(row) + 1)[:, None]
    laid_out = rows.lay_out(tokens)
    assert torch.equal(rows.take_up(laid_out), tokens)
    assert laid_out.sum() == tokens.sum()


def test_windows_with_a_refined_token_exist_whole():
    refined = torch.zeros(2, 16, 24, dtype=torch.bool)
    refined[0, 15, 0] = refined[1, 0, 23] = refined[1, 7, 16] = True
    index = WindowIndex(refined)
    assert (index.num_windows, index.count) == (2, 128)
    assert index.slices.tolist() == [0] * 64 + [1] * 64
    assert index.active.sum() == 2 * 16 * 16
    assert index.active[0, 0, 16:, :16].all()
    assert index.active[1, 0, :16, 32:].all()
    assert index.refined.sum() == 3 * 4
    assert index.refined[0, 0, 30:, :2].all()


def test_tokens_lie_window_by_window_row_by_row():
    latent = torch.arange(32.0)[:, None] * 100 + torch.arange(48.0)
    index = WindowIndex.everywhere((1, 32, 48), latent.device)
    first = index.gather(latent[None, None])[:, 0]  # upper left latent of each token
    assert first[:10].tolist() == [0, 2, 4, 6, 8, 10, 12, 14, 200, 202]
    assert first[::64].tolist() == [0, 16, 32, 1600, 1616, 1632]


def test_positions_are_those_of_the_whole_grid():
    refined = torch.zeros(1, 8, 16, dtype=torch.bool)
    refined[0, 3, 12] = refined[0, 5, 2] = True
    index = WindowIndex(refined, packing="tokens")
    table = torch.arange(8 * 16.0).reshape(8, 16, 1)
    assert index.positions(table).flatten().tolist() == [5 * 16 + 2, 3 * 16 + 12]
    assert index.positions(table) is index.positions(table)
    assert index.positions(table + 1).flatten().tolist() == [5 * 16 + 3, 3 * 16 + 13]


def test_sides_that_windows_do_not_fill_are_refused():
    with pytest.raises(MedQDMError, match=r"multiples of 16, got \(24, 32\); pad"):
        WindowIndex(torch.ones(1, 12, 16, dtype=torch.bool))
