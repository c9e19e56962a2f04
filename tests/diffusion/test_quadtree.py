import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medqdm.diffusion.quadtree import Quadtree, noise_deviation, threshold_for
from medqdm.errors import MedQDMError


def split_recursively(lr: torch.Tensor, threshold: float, side: int) -> torch.Tensor:
    """The tree as the paper words it: split a cell while its range exceeds the threshold."""
    refined = torch.zeros(lr.shape[0] // 2, lr.shape[1] // 2, dtype=torch.bool)

    def visit(y: int, x: int, size: int) -> None:
        cell = lr[y : y + size, x : x + size]
        if float(cell.max() - cell.min()) <= threshold:
            return
        if size == 2:
            refined[y // 2, x // 2] = True
            return
        for j in (0, 1):
            for i in (0, 1):
                visit(y + j * size // 2, x + i * size // 2, size // 2)

    for y in range(0, lr.shape[0], side):
        for x in range(0, lr.shape[1], side):
            visit(y, x, side)
    return refined


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.0, 0.1, 0.4, 1.0]))
def test_one_pooling_level_equals_the_recursive_tree(seed: int, threshold: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    smooth = torch.rand(1, 1, 4, 4, generator=generator) * 2 - 1
    lr = torch.nn.functional.interpolate(smooth, size=(32, 16), mode="nearest")
    lr = lr + 0.1 * torch.rand(1, 1, 32, 16, generator=generator)
    tree = Quadtree(lr, threshold)
    assert torch.equal(tree.refined[0], split_recursively(lr[0, 0], threshold, 16))


def test_strict_comparison_leaves_constant_air_alone() -> None:
    air = torch.full((1, 1, 8, 8), -1.0)
    assert not Quadtree(air, 0.0).refined.any()
    assert Quadtree(air, 0.0, inclusive=True).refined.all()


def test_range_is_the_mean_over_channels() -> None:
    lr = torch.zeros(1, 2, 2, 2)
    lr[0, 0, 0, 0] = 0.4
    assert float(Quadtree(lr, 0.1).ranges[0]) == pytest.approx(0.2)


def test_grids_finer_and_coarser_than_the_cells() -> None:
    lr = torch.zeros(1, 1, 16, 8)
    lr[0, 0, 5, 3] = 1.0  # cell (2, 1) of 8 x 4
    tree = Quadtree(lr, 0.15)
    fine = tree.at(32, 16)
    assert int(fine.sum()) == 16
    assert fine[0, 8:12, 4:8].all()
    coarse = tree.at(4, 2)
    assert coarse.nonzero().tolist() == [[0, 1, 0]]
    with pytest.raises(MedQDMError, match="multiple or divisor"):
        tree.at(12, 4)


def test_leaves_tile_the_image_once() -> None:
    generator = torch.Generator().manual_seed(3)
    lr = torch.rand(1, 1, 20, 36, generator=generator)
    tree = Quadtree(lr, 0.7)
    cover = torch.zeros(20, 36)
    for y, x, side in tree.leaves(0):
        cover[y : y + side, x : x + side] += 1
    assert (cover == 1).all()


def test_difficulty_counts_split_levels() -> None:
    lr = torch.zeros(1, 1, 16, 16)
    lr[0, 0, 0, 0] = 1.0
    difficulty = Quadtree(lr, 0.15, num_levels=3).difficulty[0]
    assert int(difficulty[0, 0]) == 3
    assert int(difficulty[1, 1]) == 2
    assert int(difficulty[3, 3]) == 1
    assert int(difficulty[7, 7]) == 0


def test_threshold_per_image() -> None:
    lr = torch.zeros(2, 1, 2, 2)
    lr[:, :, 0, 0] = 0.5
    assert Quadtree(lr, torch.tensor([0.4, 0.6])).refined.flatten().tolist() == [True, False]


def test_odd_sides_are_refused() -> None:
    with pytest.raises(MedQDMError, match="multiples of 2, got"):
        Quadtree(torch.zeros(1, 1, 5, 4), 0.15)


def test_noise_is_measured_and_raises_the_threshold() -> None:
    generator = torch.Generator().manual_seed(0)
    y = torch.linspace(-1, 1, 128)[:, None].expand(128, 128)
    lr = (y + 0.05 * torch.randn(128, 128, generator=generator))[None, None]
    assert float(noise_deviation(lr)) == pytest.approx(0.05, rel=0.05)
    assert threshold_for(lr, 0.15, 0.0) == 0.15
    raised = threshold_for(lr, 0.15, 6.0)
    assert isinstance(raised, torch.Tensor)
    assert float(raised) == pytest.approx(0.3, rel=0.05)
    assert Quadtree(lr, raised).density < Quadtree(lr, 0.15).density
