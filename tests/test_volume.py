import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medqdm.errors import MedQDMError
from medqdm.volume import SliceStack, Volume, check_same_edges, slice_digests


def oblique(shape: tuple[int, int, int] = (3, 8, 6)) -> Volume:
    angle = np.deg2rad(20)
    x = 0.7 * np.array([np.cos(angle), np.sin(angle), 0])
    y = 0.9 * np.array([-np.sin(angle) * 0.8, np.cos(angle) * 0.8, 0.6])
    origins = np.array([10.0, -20.0, 5.0]) + np.arange(shape[0])[:, None] * np.array([0, 0.3, 2.5])
    return Volume(np.zeros(shape), origins, x, y)


@given(st.sampled_from([1, 2, 4, 8]), st.integers(1, 9), st.integers(1, 9))
def test_enlarging_keeps_the_outer_edges(scale: int, height: int, width: int) -> None:
    volume = oblique((3, height, width))
    larger = volume.with_pixels(np.zeros((3, height * scale, width * scale)))
    np.testing.assert_allclose(larger.corners_mm(), volume.corners_mm(), atol=1e-9)
    assert larger.spacing_mm == pytest.approx([s / scale for s in volume.spacing_mm])


def test_first_voxel_moves_by_three_eighths_at_x4() -> None:
    volume = Volume.from_spacing(np.zeros((1, 4, 4)), (1.0, 2.0, 2.0))
    larger = volume.with_pixels(np.zeros((1, 16, 16)))
    np.testing.assert_allclose(larger.origins_mm[0], [-0.75, -0.75, 0])


def test_a_mark_stays_at_its_position() -> None:
    volume = oblique()
    hu = np.zeros((3, 32, 24))
    hu[1, 4 * 5 : 4 * 6, 4 * 2 : 4 * 3] = 1000  # the block of input voxel (5, 2)
    larger = volume.with_pixels(hu)
    y, x = np.argwhere(larger.hu[1] == 1000).mean(axis=0)
    np.testing.assert_allclose(larger.position_mm(1, y, x), volume.position_mm(1, 5, 2), atol=1e-9)


def test_affine_maps_indices_to_positions() -> None:
    volume = oblique()
    found = volume.affine @ np.array([4, 7, 2, 1])
    np.testing.assert_allclose(found[:3], volume.position_mm(2, 7, 4), atol=1e-9)


def test_uneven_slices_have_no_affine() -> None:
    volume = oblique()
    origins = volume.origins_mm.copy()
    origins[2, 2] += 1
    uneven = Volume(volume.hu, origins, volume.x_step_mm, volume.y_step_mm)
    assert not uneven.is_regular
    with pytest.raises(MedQDMError, match="evenly spaced for one affine, got steps of 2"):
        _ = uneven.affine


def test_edge_check_sees_two_micrometres() -> None:
    corners = oblique().corners_mm()
    check_same_edges(corners, corners + 5e-4, where="out")
    with pytest.raises(MedQDMError, match=r"out: outer edges must stay.*got 0\.002"):
        check_same_edges(corners, corners + 2e-3, where="out")
    with pytest.raises(MedQDMError, match="got inf mm"):
        check_same_edges(corners, corners[:2], where="out")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hu": np.zeros((4, 4))}, r"must be \(z, y, x\)"),
        ({"hu": np.full((3, 8, 6), np.nan)}, "finite HU, got 144 NaN"),
        ({"origins_mm": np.zeros((2, 3))}, "origins_mm must be"),
        ({"x_step_mm": np.full(3, np.nan)}, "x_step_mm must be"),
        ({"y_step_mm": np.zeros(3)}, "pixel spacing must be above 0"),
        ({"padding": np.zeros((1, 8, 6), dtype=bool)}, "padding mask must have shape"),
    ],
)
def test_damaged_volumes_are_refused(change: dict[str, np.ndarray], message: str) -> None:
    good = oblique()
    parts = {
        "hu": good.hu,
        "origins_mm": good.origins_mm,
        "x_step_mm": good.x_step_mm,
        "y_step_mm": good.y_step_mm,
    }
    with pytest.raises(MedQDMError, match=message):
        Volume(**{**parts, **change})


def test_new_pixels_must_keep_the_slices() -> None:
    with pytest.raises(MedQDMError, match="must keep 3 slices"):
        oblique().with_pixels(np.zeros((2, 8, 6)))


@pytest.fixture
def stack() -> tuple[SliceStack, np.ndarray, list[int]]:
    """A stack, the same as an array, and which slices were read."""
    whole = np.arange(60, dtype=np.float32).reshape(3, 4, 5)
    reads: list[int] = []

    def read(z: int) -> np.ndarray:
        reads.append(z)
        return whole[z].copy()

    return SliceStack((3, 4, 5), np.float32, read), whole, reads


def test_a_stack_reads_only_what_is_asked_for(stack) -> None:
    lazy, whole, reads = stack
    np.testing.assert_array_equal(lazy[1], whole[1])
    np.testing.assert_array_equal(lazy[-1, 1:3, 2], whole[-1, 1:3, 2])
    assert reads == [1, 2]
    assert (len(lazy), lazy.shape, lazy.ndim, lazy.dtype) == (3, (3, 4, 5), 3, np.float32)
    with pytest.raises(IndexError, match="0 to 2, got 3"):
        lazy[3]


def test_a_stack_stands_for_an_array(stack) -> None:
    lazy, whole, _ = stack
    np.testing.assert_array_equal(np.asarray(lazy), whole)
    np.testing.assert_array_equal(list(lazy), whole)
    np.testing.assert_array_equal(lazy[:, ::2], whole[:, ::2])
    np.testing.assert_array_equal(lazy == 7, whole == 7)
    np.testing.assert_array_equal(1 - lazy, 1 - whole)
    with pytest.raises(ValueError, match="got copy=False"):
        np.asarray(lazy, copy=False)
    assert slice_digests(lazy) == slice_digests(whole)


def test_a_volume_of_a_stack_reads_nothing(stack) -> None:
    lazy, _, reads = stack
    volume = Volume(lazy, np.arange(9.0).reshape(3, 3), np.array([1, 0, 0]), np.array([0, 1, 0]))
    larger = volume.with_pixels(SliceStack((3, 8, 10), np.float32, lazy._read))
    assert larger.shape == (3, 8, 10)
    np.testing.assert_allclose(larger.corners_mm(), volume.corners_mm())
    assert reads == []
