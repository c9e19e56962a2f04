"""Random series whose slices differ in orientation, spacing, frame, matrix or place.

Every slice of the input is in the output, at its own place to a micrometre; or it is counted; or
the series is refused.
"""

import copy
import itertools
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid
from pydicom.valuerep import format_number_as_ds

from medqdm.errors import MedQDMError
from medqdm.io import find_series, read, write, write_series
from medqdm.volume import Volume

AXES = {
    "axial": (1, 0, 0, 0, 1, 0),
    "prone": (-1, 0, 0, 0, -1, 0),
    "coronal": (1, 0, 0, 0, 0, -1),
    "sagittal": (0, 1, 0, 0, 0, -1),
    "oblique": (0.8, 0.6, 0, -0.48, 0.64, 0.6),
}
SHAPE, PIXEL = (9, 12), 0.8
SEEDS = pytest.mark.parametrize("seed", range(5))


class Series:
    """A series in the making: datasets in spatial order, written under shuffled names."""

    def __init__(self, ct_series, tmp_path: Path, seed: int, num: int | None = None) -> None:
        self.rng = np.random.default_rng(seed)
        self.num = int(self.rng.integers(2, 13)) if num is None else num
        self.name = list(AXES)[seed % len(AXES)]
        self.axes = np.array(AXES[self.name], float)
        self.step = float(self.rng.choice([1.25, 2.5, 5.0]))
        hu = self.rng.normal(0, 100, (self.num, *SHAPE)).round()
        made = ct_series(hu, folder="made", orientation=AXES[self.name],
                         spacing_mm=(self.step, PIXEL, PIXEL))  # fmt: skip
        self.slices = [pydicom.dcmread(file) for file in sorted(made.iterdir())][::-1]
        self.folder = tmp_path / "series"
        shutil.rmtree(made)
        tilt = float(self.rng.choice([0, 0.3]))
        for k, dataset in enumerate(self.slices):
            self.move(dataset, tilt * k * self.step * self.axes[3:])

    @property
    def normal(self) -> NDArray[np.float64]:
        return np.cross(self.axes[:3], self.axes[3:])

    def move(self, dataset: Dataset, way: NDArray[np.float64]) -> None:
        place = np.array(dataset.ImagePositionPatient, float) + way
        dataset.ImagePositionPatient = [format_number_as_ds(float(v)) for v in place]

    def turn(self, dataset: Dataset, vector: NDArray[np.float64], *, centre: bool) -> None:
        """Turn a slice by a vector in radians, about its first voxel or its centre."""
        angle = np.linalg.norm(vector)
        x, y, z = vector / angle
        skew = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
        matrix = np.eye(3) + np.sin(angle) * skew + (1 - np.cos(angle)) * skew @ skew
        before = middle(dataset)
        axes = np.array(dataset.ImageOrientationPatient, float).reshape(2, 3) @ matrix.T
        dataset.ImageOrientationPatient = [format_number_as_ds(float(v)) for v in axes.ravel()]
        if centre:
            self.move(dataset, before - middle(dataset))

    def new_copy(self, dataset: Dataset, **tags: object) -> Dataset:
        made = copy.deepcopy(dataset)
        made.SOPInstanceUID = generate_uid()
        for keyword, value in tags.items():
            setattr(made, keyword, value)
        return made

    def save(self, *more: Dataset) -> Path:
        self.folder.mkdir()
        slices = [*self.slices, *more]
        for k, dataset in zip(self.rng.permutation(len(slices)), slices, strict=True):
            dataset.save_as(self.folder / f"{k:03d}")
        return self.folder


def steps(dataset: Dataset) -> NDArray[np.float64]:
    axes = np.array(dataset.ImageOrientationPatient, float).reshape(2, 3)
    return axes * np.array(dataset.PixelSpacing, float)[::-1, None]


def corners(dataset: Dataset) -> NDArray[np.float64]:
    place, (x, y) = np.array(dataset.ImagePositionPatient, float), steps(dataset)
    ends = itertools.product((-0.5, dataset.Rows - 0.5), (-0.5, dataset.Columns - 0.5))
    return np.array([place + v * y + u * x for v, u in ends])


def middle(dataset: Dataset) -> NDArray[np.float64]:
    return corners(dataset).mean(axis=0)


def enlarge(volume: Volume, out: Path) -> list[Dataset]:
    write_series(
        volume, (hu.repeat(2, 0).repeat(2, 1) for hu in volume.hu), out, upscale=2,
        description="nearest neighbour, test", software_version="0", weights_id="none",
        uid_entropy=["test"],
    )  # fmt: skip
    return [pydicom.dcmread(file) for file in sorted(out.iterdir())]


def check_places(volume: Volume, expected: list[Dataset], out: Path) -> list[Dataset]:
    """All expected slices, in order, are read and written at their own places."""
    uids = [str(h.SOPInstanceUID) for h in volume.source.headers]
    assert uids == [str(dataset.SOPInstanceUID) for dataset in expected]
    for k, dataset in enumerate(expected):
        words = dataset.pixel_array + float(dataset.RescaleIntercept)
        np.testing.assert_array_equal(volume.hu[k], words)
        np.testing.assert_allclose(volume.corners_mm()[k, 0], corners(dataset)[0], atol=1e-6)
        pixel = min(float(v) for v in dataset.PixelSpacing)
        off = np.linalg.norm(volume.corners_mm()[k] - corners(dataset), axis=1).max()
        assert off <= pixel / 4 + 1e-6
    written = enlarge(volume, out)
    for dataset, derived in zip(expected, written, strict=True):
        np.testing.assert_allclose(corners(derived), corners(dataset), atol=1e-3)
        assert derived.ImageOrientationPatient == dataset.ImageOrientationPatient
    again = read(out)
    np.testing.assert_allclose(again.corners_mm(), volume.corners_mm(), atol=1e-4)
    return written


def jitter(series: Series, largest_px: float) -> float:
    """Turn each slice and round its spacing; by how many mm two of them differ at the most."""
    side = max(SHAPE)
    turns, rounds = series.rng.permutation([True, bool(series.rng.integers(2))])
    centre = bool(series.rng.integers(2))
    for dataset in series.slices:
        if turns:
            vector = series.rng.normal(size=3)
            angle = series.rng.uniform(0, 1) * largest_px / (2 * side)
            series.turn(dataset, vector / np.linalg.norm(vector) * angle, centre=centre)
        if rounds:
            factor = 1 + series.rng.uniform(-1, 1) * largest_px / (4 * side)
            dataset.PixelSpacing = [f"{PIXEL * factor:.6f}"] * 2
    fields = [corners(d) - corners(d)[0] for d in series.slices]
    pairs = itertools.product(fields, fields)
    return max(float(np.linalg.norm(a - b, axis=1).max()) for a, b in pairs)


@SEEDS
@pytest.mark.parametrize("largest_px", [0.001, 0.02, 0.12])
def test_small_differences_cost_no_slice(ct_series, tmp_path, seed, largest_px) -> None:
    series = Series(ct_series, tmp_path, seed)
    apart_mm = jitter(series, largest_px)
    volume = read(series.save())
    assert (volume.source.left_out, volume.source.losses) == (0, ())
    said = [w for w in volume.source.warnings if "slices differ in" in w]
    assert bool(said) <= (apart_mm > 1e-3)
    assert bool(said) >= (apart_mm > 2e-3)  # the common axes and spacing may lie between
    assert not any("gap" in warning for warning in volume.source.warnings)
    check_places(volume, series.slices, tmp_path / "out")
    (summary,) = find_series(series.folder)
    assert (summary.num_slices, summary.num_gaps) == (series.num, 0)
    assert set(summary.warnings) <= set(volume.source.warnings)


@SEEDS
def test_rounded_spacings_and_other_formats(ct_series, tmp_path, seed) -> None:
    series = Series(ct_series, tmp_path, seed, num=3 + 2 * seed)
    for k, dataset in enumerate(series.slices):
        dataset.PixelSpacing = [("0.734375", "0.7344", "0.734")[k % 3]] * 2
    volume = read(series.save())
    (warning,) = volume.source.warnings
    assert "slices differ in PixelSpacing, by up to 0.00" in warning
    check_places(volume, series.slices, tmp_path / "out")
    write(volume, volume, tmp_path / "out.nrrd")
    np.testing.assert_allclose(
        read(tmp_path / "out.nrrd", slice_axis=2).corners_mm(), volume.corners_mm(), atol=1e-3
    )


BEYOND = ("turn", "spacing", "matrix", "tilt")


@SEEDS
@pytest.mark.parametrize("kind", BEYOND)
def test_what_is_beyond_a_quarter_of_a_pixel_is_counted(ct_series, tmp_path, seed, kind) -> None:
    series = Series(ct_series, tmp_path, seed)
    lost = int(series.rng.integers(1, series.num // 2 + 1))
    which = sorted(series.rng.choice(series.num, lost, replace=False).tolist())
    for k in which:
        dataset = series.slices[k]
        if kind == "spacing":
            dataset.PixelSpacing = [f"{PIXEL * (1 + 0.4 / min(SHAPE)):.6f}"] * 2
        elif kind == "matrix":
            dataset.PixelData = dataset.pixel_array[:-1].tobytes()
            dataset.Rows = SHAPE[0] - 1
        else:
            axis = series.normal if kind == "turn" else series.axes[:3]
            series.turn(dataset, axis * 0.4 / min(SHAPE), centre=True)
    folder = series.save()
    if 2 * lost == series.num:
        with pytest.raises(MedQDMError, match=f"got 2 groups of {lost}, {lost}; give"):
            read(folder)
        return
    volume = read(folder)
    assert volume.source.left_out == lost
    reason = f"left out {lost} image(s) of another orientation, matrix or spacing"
    assert volume.source.losses == (reason,)
    assert reason in volume.source.warnings
    kept = [dataset for k, dataset in enumerate(series.slices) if k not in which]
    check_places(volume, kept, tmp_path / "out")


@SEEDS
@pytest.mark.parametrize("kind", ["each", "groups", "one odd", "one none", "none"])
def test_frames_of_reference_split_nothing_that_fits(ct_series, tmp_path, seed, kind) -> None:
    series = Series(ct_series, tmp_path, seed)
    frames = {
        "each": [generate_uid() for _ in series.slices],
        "groups": [("1.2.9", "1.2.8")[k > series.num // 2] for k in range(series.num)],
        "one odd": ["1.2.9" if k != seed % series.num else "1.2.8" for k in range(series.num)],
        "one none": ["1.2.9" if k != seed % series.num else "" for k in range(series.num)],
        "none": [""] * series.num,
    }[kind]
    for dataset, frame in zip(series.slices, frames, strict=True):
        dataset.FrameOfReferenceUID = frame
    volume = read(series.save())
    said = [w for w in volume.source.warnings if "FrameOfReferenceUID differs" in w]
    count = len(set(frames))
    assert len(said) == (count > 1)
    assert all(f"{count} frames of reference in {series.num} slices" in w for w in said)
    assert volume.source.left_out == 0
    written = check_places(volume, series.slices, tmp_path / "out")
    (frame,) = {str(dataset.FrameOfReferenceUID) for dataset in written}
    counts = Counter(f for f in frames if f)
    if counts:  # the most frequent one; of equal ones that of the first slice
        assert frame == max(counts, key=counts.__getitem__)
    assert frame


@SEEDS
def test_frames_at_the_same_places_are_acquisitions(ct_series, tmp_path, seed) -> None:
    series = Series(ct_series, tmp_path, seed)
    for dataset in series.slices:
        dataset.FrameOfReferenceUID = "1.2.8"
    again = [series.new_copy(d, FrameOfReferenceUID="1.2.9") for d in series.slices]
    jitters = bool(seed % 2)
    for dataset in again * jitters:
        series.turn(dataset, series.axes[:3] * 0.05 / max(SHAPE), centre=True)
    folder = series.save(*again)
    with pytest.raises(MedQDMError, match="must hold one acquisition, got 2"):
        read(folder)
    uid = series.slices[0].SeriesInstanceUID
    for number, expected in ((1, series.slices), (2, again)):
        volume = read(folder, series=f"{uid}#{number}")
        assert (volume.source.acquisition, volume.source.left_out) == (number, 0)
        check_places(volume, expected, tmp_path / f"out{number}")


@SEEDS
def test_frames_that_are_even_by_themselves_alone_are_acquisitions(
    ct_series, tmp_path, seed
) -> None:
    series = Series(ct_series, tmp_path, seed, num=int(4 + seed % 9))
    cut = int(series.rng.integers(2, series.num - 1))
    for k, dataset in enumerate(series.slices):
        dataset.FrameOfReferenceUID = "1.2.8" if k < cut else "1.2.9"
        if k >= cut:
            series.move(dataset, series.normal * series.step * 0.7)
    folder = series.save()
    parts = [read(folder, series=f"{series.slices[0].SeriesInstanceUID}#{n}") for n in (1, 2)]
    check_places(parts[0], series.slices[:cut], tmp_path / "out1")
    check_places(parts[1], series.slices[cut:], tmp_path / "out2")
    assert not any(w for part in parts for w in part.source.warnings)


@SEEDS
@pytest.mark.parametrize("tag", ["AcquisitionNumber", "ConvolutionKernel"])
def test_passes_between_each_others_slices_are_acquisitions(ct_series, tmp_path, seed, tag) -> None:
    series = Series(ct_series, tmp_path, seed, num=int(3 + seed % 9))
    offset = float(series.rng.choice([0.005, 0.3, series.num - 1.6])) * series.step
    values = (1, 2) if tag == "AcquisitionNumber" else ("B30f", "B70f")
    jitter(series, 0.06)
    second = [series.new_copy(d) for d in series.slices]
    for value, group in zip(values, (series.slices, second), strict=True):
        for dataset in group:
            setattr(dataset, tag, value)
    for dataset in second:
        series.move(dataset, series.normal * offset)
    folder = series.save(*second)
    uid = series.slices[0].SeriesInstanceUID
    for number, expected in ((1, series.slices), (2, second)):
        volume = read(folder, series=f"{uid}#{number}")
        check_places(volume, expected, tmp_path / f"out{number}")
    assert [s.num_slices for s in find_series(folder)] == [series.num] * 2


@SEEDS
def test_one_scan_in_steps_is_not_split(ct_series, tmp_path, seed) -> None:
    """Blocks with acquisition numbers of their own, one behind the other, or woven evenly."""
    series = Series(ct_series, tmp_path, seed, num=int(4 + seed % 9))
    for k, dataset in enumerate(series.slices):
        if seed % 2:
            dataset.AcquisitionNumber = k % 2 + 1
        else:
            dataset.AcquisitionNumber = int(k >= series.num // 2) + 1
            if k >= series.num // 2:
                series.move(dataset, series.normal * series.step * 2)  # a gap
    volume = read(series.save())
    assert volume.source.acquisition == 0
    check_places(volume, series.slices, tmp_path / "out")


def test_passes_that_cannot_be_split_are_told(ct_series, tmp_path) -> None:
    series = Series(ct_series, tmp_path, 0, num=8)
    for dataset, place, number in zip(
        series.slices, (0, 1, 1.7, 2.1, 3, 3.6, 5, 6), (1, 1, 2, 1, 1, 2, 2, 2), strict=True
    ):
        dataset.AcquisitionNumber = number
        dataset.ImagePositionPatient = [0, 0, place * 2]
    volume = read(series.save())
    assert len(volume.hu) == 8
    assert any("2 acquisitions (by AcquisitionNumber) lie between" in w
               for w in volume.source.warnings)  # fmt: skip


@SEEDS
def test_scouts_and_duplicates_are_no_loss(ct_series, tmp_path, seed) -> None:
    series = Series(ct_series, tmp_path, seed, num=int(2 + seed % 11))
    turned = np.concatenate([series.axes[:3], series.normal])
    upright = np.concatenate([series.axes[3:], series.normal])
    scouts = []
    for axes, kind in ((turned, "AXIAL"), (upright, "AXIAL"), (series.axes, "LOCALIZER")):
        scout = series.new_copy(series.slices[0], ImageType=["ORIGINAL", "PRIMARY", kind])
        scout.ImageOrientationPatient = [format_number_as_ds(float(v)) for v in axes]
        if kind == "AXIAL" and seed % 2:
            scout.PixelData, scout.Rows = scout.pixel_array[:-1].tobytes(), SHAPE[0] - 1
        scouts.append(scout)
    twin = series.new_copy(series.slices[-1], SOPInstanceUID=series.slices[-1].SOPInstanceUID)
    volume = read(series.save(*scouts, twin))
    assert (volume.source.left_out, volume.source.losses) == (0, ())
    assert volume.source.warnings == (
        "left out 1 localizer image(s)",
        "left out 1 duplicate file(s)",
        "left out 2 image(s) of another plane, taken for scouts",
    )
    check_places(volume, series.slices, tmp_path / "out")


@SEEDS
def test_a_stack_of_another_plane_is_no_scout(ct_series, tmp_path, seed) -> None:
    series = Series(ct_series, tmp_path, seed, num=int(4 + seed % 9))
    turned = np.concatenate([series.axes[:3], series.normal])
    stack = []
    for k in range(3):
        other = series.new_copy(series.slices[k])
        other.ImageOrientationPatient = [format_number_as_ds(float(v)) for v in turned]
        series.move(other, series.axes[3:] * k)
        stack.append(other)
    volume = read(series.save(*stack))
    assert volume.source.left_out == 3
    check_places(volume, series.slices, tmp_path / "out")


@SEEDS
@pytest.mark.parametrize("location", [True, False])
def test_rounded_positions_are_named(ct_series, tmp_path, seed, location) -> None:
    series = Series(ct_series, tmp_path, 5 * seed, num=int(4 + seed % 9))  # axial
    for k, dataset in enumerate(series.slices):
        dataset.ImagePositionPatient = [-11, -17, round(0.6 * k)]
        if location:
            dataset.SliceLocation = f"{0.6 * k:.1f}"
    with pytest.raises(MedQDMError, match=r"positions (seem to be|are) rounded, export") as caught:
        read(series.save())
    assert ("several acquisitions" in str(caught.value)) != location
    assert ("SliceLocation" in str(caught.value)) == location
