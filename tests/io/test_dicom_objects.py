import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pydicom
import pytest
from highdicom.spatial import ImageToReferenceTransformer
from numpy.typing import NDArray

from medqdm import io
from medqdm.errors import MedQDMError
from medqdm.io import dicom_overlay
from medqdm.io.dicom_objects import write_parametric_map, write_segmentation
from medqdm.picture import upsample_bicubic
from medqdm.volume import Volume

DATA = Path(__file__).parent.parent / "data"
UPSCALE = 2
CELL_PX = 2 * UPSCALE
Make = Callable[..., "Made"]


class Made:
    """An enlarged series, its refined cells with one block, and what was written beside it."""

    def __init__(self, source: Path, folder: Path, upscale: int = UPSCALE) -> None:
        volume = io.read(source)
        report = io.write_series(
            volume,
            (upsample_bicubic(hu, upscale) for hu in volume.hu),
            folder / "out",
            upscale=upscale,
            description="bicubic enlargement for a test",
            software_version="1.2",
            weights_id="0123456789ab",
            uid_entropy=["test"],
        )
        self.slices = [folder / "out" / name for name in report.files]
        self.headers = [pydicom.dcmread(file, stop_before_pixels=True) for file in self.slices]
        self.volume: Volume = io.read(folder / "out")
        self.folder, self.upscale = folder, upscale
        z, height, width = volume.shape
        self.block = (z // 2, slice(1, 3), slice(2, 6))  # of cells
        self.cells = np.zeros((z, -(-height // 2), -(-width // 2)), dtype=bool)
        self.cells[self.block] = True
        random = np.random.default_rng(0)
        self.deviation = random.uniform(0, 90, self.volume.shape).astype(np.float16)

    def segmentation(self, cells: Callable[[int], Any] | None = None) -> Any:
        (file,) = write_segmentation(
            self.slices, cells or (lambda z: self.cells[z]), self.folder,
            cell_px=2 * self.upscale, threshold_hu=150,
        )  # fmt: skip
        return highdicom.seg.segread(file)

    def parametric_map(self, draws: int = 8) -> Any:
        (file,) = write_parametric_map(
            self.slices, lambda z: self.deviation[z], self.folder, draws=draws
        )
        return read_map(file)

    def block_mm(self) -> NDArray[np.float64]:
        """The middle of the block, by our own reader of the series."""
        z, rows, columns = self.block
        cell = 2 * self.upscale
        y, x = ((s.start + s.stop) / 2 * cell - 0.5 for s in (rows, columns))
        return self.volume.position_mm(z, y, x)

    def frame_of(self, z: int, image: Any) -> int:
        """The number of the frame that says it was made from slice z."""
        sources = [
            item.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
            for item in image.PerFrameFunctionalGroupsSequence
        ]
        return 1 + sources.index(self.headers[z].SOPInstanceUID)


def read_map(file: Path) -> Any:
    image = highdicom.pm.ParametricMap.from_file(file)
    assert image.pixel_array.dtype == np.float32  # single floats are read from here by 0.28
    return image


@pytest.fixture
def make(tmp_path: Path, ct_series: Any) -> Make:
    def write(*, upscale: int = UPSCALE, **options: Any) -> Made:
        return Made(ct_series(**options), tmp_path / "made", upscale)

    return write


def centre_mm(image: Any, frame: int, marked: NDArray[Any]) -> NDArray[np.float64]:
    """The middle of marked pixels in mm, by highdicom, from the object alone."""
    rows, columns = np.nonzero(marked)
    to_mm = ImageToReferenceTransformer.for_image(image, frame_number=frame)
    # image coordinates begin at the outer corner of the first pixel
    middle = np.array([[columns.mean() + 0.5, rows.mean() + 0.5]])
    return np.asarray(to_mm(middle)[0])


GEOMETRIES = {
    "anisotropic": {"spacing_mm": (2.5, 0.9, 0.6)},
    "feet first, flipped": {"orientation": (-1, 0, 0, 0, 1, 0), "spacing_mm": (3.0, 0.7, 0.7)},
    "coronal": {"orientation": (1, 0, 0, 0, 0, -1), "spacing_mm": (1.5, 0.5, 0.8)},
    "oblique": {
        "orientation": (1, 0, 0, 0, round(np.cos(0.3), 6), round(np.sin(0.3), 6)),
        "spacing_mm": (2.0, 0.8, 0.6),
    },
}


@pytest.mark.parametrize("name", GEOMETRIES)
def test_a_block_lies_where_the_series_has_it(name: str, make: Make) -> None:
    made = make(**GEOMETRIES[name])
    z = made.block[0]
    image = made.segmentation()
    frame = made.frame_of(z, image)
    by_frame = centre_mm(image, frame, image.get_stored_frame(frame))
    np.testing.assert_allclose(by_frame, made.block_mm(), atol=1e-3)

    volume = image.get_volume(combine_segments=True)
    index = np.argwhere(volume.array).mean(axis=0)
    by_volume = volume.map_indices_to_reference(index[None])[0]
    np.testing.assert_allclose(by_volume, made.block_mm(), atol=1e-3)


def test_a_block_lies_where_a_tilted_head_has_it(tmp_path: Path) -> None:
    made = Made(DATA / "vendors" / "ge-head-tilt", tmp_path)
    steps = made.volume.z_steps_mm
    assert abs(steps[0] @ made.volume.y_step_mm) > 0.1  # sheared: no single affine for viewers
    for image in (made.segmentation(), made.parametric_map()):
        for z in range(made.volume.shape[0]):
            frame = made.frame_of(z, image)
            corner = np.zeros(made.volume.shape[1:], dtype=bool)
            corner[-3, 5] = True
            expected = made.volume.position_mm(z, made.volume.shape[1] - 3, 5)
            np.testing.assert_allclose(centre_mm(image, frame, corner), expected, atol=1e-3)
    image = made.segmentation()
    frame = made.frame_of(made.block[0], image)
    found = centre_mm(image, frame, image.get_stored_frame(frame))
    np.testing.assert_allclose(found, made.block_mm(), atol=1e-3)


def test_slices_with_a_gap_keep_their_places(make: Make, phantom: NDArray[np.float32]) -> None:
    def move(dataset: pydicom.Dataset, k: int) -> None:
        if k >= 2:
            x, y, z = dataset.ImagePositionPatient
            dataset.ImagePositionPatient = [x, y, float(z) + 7.5]

    made = make(hu=phantom, edit=move)
    image = made.segmentation()
    for z, header in enumerate(made.headers):
        frame = image.PerFrameFunctionalGroupsSequence[made.frame_of(z, image) - 1]
        place = frame.PlanePositionSequence[0].ImagePositionPatient
        assert [float(v) for v in place] == [float(v) for v in header.ImagePositionPatient]
    (measures,) = image.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence
    assert "SpacingBetweenSlices" not in measures


def test_every_frame_holds_its_cells(make: Make) -> None:
    made = make()
    random = np.random.default_rng(1)
    cells = random.random(made.cells.shape) < 0.4
    image = made.segmentation(lambda z: cells[z])
    assert image.SegmentationType == "BINARY"
    for z in range(len(cells)):
        expected = cells[z].repeat(CELL_PX, axis=0).repeat(CELL_PX, axis=1)
        found = image.get_stored_frame(made.frame_of(z, image))
        np.testing.assert_array_equal(found, expected[: found.shape[0], : found.shape[1]])


def test_frames_that_do_not_end_with_a_byte(make: Make) -> None:
    hu = np.random.default_rng(2).uniform(-900, 900, (3, 35, 33)).round()
    made = make(hu=hu, upscale=3)
    rows, columns = made.volume.shape[1:]
    assert rows * columns % 8
    cells = np.random.default_rng(3).random(made.cells.shape) < 0.5
    image = made.segmentation(lambda z: cells[z])
    raw = (made.folder / "segmentation.dcm").read_bytes()
    assert len(image.PixelData) == (3 * rows * columns + 15) // 16 * 2
    assert raw.endswith(image.PixelData)
    for z in range(3):
        expected = cells[z].repeat(6, axis=0).repeat(6, axis=1)[:rows, :columns]
        np.testing.assert_array_equal(image.get_stored_frame(made.frame_of(z, image)), expected)


def test_a_series_without_refined_regions_has_empty_frames(make: Make) -> None:
    made = make()
    image = made.segmentation(lambda z: np.zeros_like(made.cells[z]))
    assert image.number_of_frames == len(made.slices)
    assert not image.pixel_array.any()


def test_the_map_holds_hu(make: Make) -> None:
    made = make()
    image = made.parametric_map()
    for z in range(len(made.slices)):
        number = made.frame_of(z, image)
        np.testing.assert_array_equal(image.get_stored_frame(number), made.deviation[z])
        real = image.get_frame(number, apply_real_world_transform=True)
        np.testing.assert_array_equal(real, made.deviation[z])
    mapping = image.SharedFunctionalGroupsSequence[0].RealWorldValueMappingSequence[0]
    unit = mapping.MeasurementUnitsCodeSequence[0]
    assert (unit.CodeValue, unit.CodingSchemeDesignator) == ("[hnsf'U]", "UCUM")
    assert image.ContentQualification == "RESEARCH"
    assert "8 draws" in mapping.LUTExplanation


def test_they_belong_to_the_study_and_name_what_they_lie_on(make: Make) -> None:
    made = make(
        PatientName="Canary^One", PatientID="C-1", PatientIdentityRemoved="YES",
        DeidentificationMethod="by hand", ClinicalTrialSubjectID="S-9",
        LongitudinalTemporalInformationModified="MODIFIED", TimezoneOffsetFromUTC="+0100",
        StudyDescription="Thorax, Gr\u00f6\u00dfe", SpecificCharacterSet="ISO_IR 100",
    )  # fmt: skip
    first = made.headers[0]
    numbers = {int(first.SeriesNumber)}
    uids = {str(first.SeriesInstanceUID)}
    for image in (made.segmentation(), made.parametric_map()):
        for keyword in ("StudyInstanceUID", "FrameOfReferenceUID", "PatientName", "PatientID",
                        "PatientIdentityRemoved", "DeidentificationMethod", "StudyDate",
                        "ClinicalTrialSubjectID", "LongitudinalTemporalInformationModified",
                        "TimezoneOffsetFromUTC", "StudyDescription", "SpecificCharacterSet",
                        "SeriesDate", "ContentDate", "ContentTime", "InstanceCreationDate",
                        "ContributingEquipmentSequence", "SoftwareVersions"):  # fmt: skip
            assert image[keyword].value == first[keyword].value, keyword
        (series,) = image.ReferencedSeriesSequence
        assert series.SeriesInstanceUID == first.SeriesInstanceUID
        named = [i.ReferencedSOPInstanceUID for i in series.ReferencedInstanceSequence]
        assert named == [header.SOPInstanceUID for header in made.headers]
        assert image.Manufacturer == "medqdm"
        numbers.add(int(image.SeriesNumber))
        uids.add(str(image.SeriesInstanceUID))
    assert len(numbers) == len(uids) == 3


def test_the_segment_says_what_it_is(make: Make) -> None:
    (segment,) = make().segmentation().SegmentSequence
    assert segment.SegmentAlgorithmType == "AUTOMATIC"
    assert segment.SegmentLabel == "synthesised detail"
    assert segment.SegmentedPropertyTypeCodeSequence[0].CodeValue == "111030"
    algorithm = segment.SegmentationAlgorithmIdentificationSequence[0]
    assert algorithm.AlgorithmVersion == "1.2"
    assert "threshold_hu=150" in algorithm.AlgorithmParameters


def test_the_same_run_gives_the_same_file(make: Make) -> None:
    made = make()
    kept = []
    for _ in range(2):
        made.segmentation()
        made.parametric_map()
        kept.append([file.read_bytes() for file in sorted(made.folder.glob("*.dcm"))])
    assert len(kept[0]) == 2
    assert kept[0] == kept[1]
    assert made.parametric_map(8).SeriesInstanceUID != made.parametric_map(4).SeriesInstanceUID


def test_a_source_without_content_date_lends_another(make: Make) -> None:
    made = make()
    for header, file in zip(made.headers, made.slices, strict=True):
        dataset = pydicom.dcmread(file)
        for keyword in ("ContentDate", "ContentTime", "SeriesDate", "SeriesTime"):
            del dataset[keyword]
        dataset.save_as(file)
        assert header.StudyDate == "20200102"
    image = made.segmentation()
    assert (image.ContentDate, image.ContentTime) == ("20200102", "000000")


def test_changed_pixels_have_another_uid(make: Make) -> None:
    made = make()
    before = made.segmentation().SOPInstanceUID, made.parametric_map().SOPInstanceUID
    made.cells[0, 0, 0] ^= True
    made.deviation[0, 0, 0] += 1
    after = made.segmentation().SOPInstanceUID, made.parametric_map().SOPInstanceUID
    assert before[0] != after[0]
    assert before[1] != after[1]


def test_what_highdicom_would_refuse_is_kept(make: Make) -> None:
    def spoil(dataset: pydicom.Dataset, _: int) -> None:
        with pydicom.config.disable_value_validation():
            dataset.PatientSex = "unknown"
            dataset.PatientBirthDate = "1970?"
            dataset.AccessionNumber = "12345678901234567890"
            dataset.SliceThickness = None

    with pydicom.config.disable_value_validation():
        made = make(edit=spoil)
        image = made.segmentation()
        assert image.PatientSex == "unknown"
        assert image.PatientBirthDate == "1970?"
        assert image.AccessionNumber == "12345678901234567890"


def test_directions_that_differ_by_rounding_are_kept_for_each_frame(make: Make) -> None:
    def turn(dataset: pydicom.Dataset, k: int) -> None:
        dataset.ImageOrientationPatient = [1, k * 1e-6, 0, -k * 1e-6, 1, 0]

    made = make(edit=turn)
    image = made.segmentation()
    for z, header in enumerate(made.headers):
        item = image.PerFrameFunctionalGroupsSequence[made.frame_of(z, image) - 1]
        found = item.PlaneOrientationSequence[0].ImageOrientationPatient
        assert [float(v) for v in found] == [float(v) for v in header.ImageOrientationPatient]


def test_many_pixels_are_spread_over_objects(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make()
    frame = made.volume.shape[1] * made.volume.shape[2] * 4
    monkeypatch.setattr(dicom_overlay, "_MOST_BYTES", 3 * frame)
    files = write_parametric_map(made.slices, lambda z: made.deviation[z], made.folder, draws=4)
    assert [file.name for file in files] == ["uncertainty-01.dcm", "uncertainty-02.dcm"]
    images = [read_map(file) for file in files]
    assert [image.number_of_frames for image in images] == [3, 1]
    assert [image.InstanceNumber for image in images] == [1, 2]
    assert len({image.SeriesInstanceUID for image in images}) == 1
    assert len({image.SOPInstanceUID for image in images}) == 2
    np.testing.assert_array_equal(images[1].get_stored_frame(1), made.deviation[3])


def test_pixels_that_do_not_reach_the_disk_are_noticed(make: Make) -> None:
    made = make()
    calls = []

    def flaky(z: int) -> NDArray[np.bool_]:
        calls.append(z)
        return made.cells[z] if len(calls) <= 8 else ~made.cells[z]  # 4 hashed, 4 written

    with pytest.raises(MedQDMError, match=r"segmentation.dcm: .* very pixels"):
        made.segmentation(flaky)


def test_memory_does_not_grow_with_the_series(tmp_path: Path, ct_series: Any) -> None:
    peaks = []
    for count in (4, 16):
        source = ct_series(np.zeros((count, 128, 128)), folder=f"source{count}")
        made = Made(source, tmp_path / f"made{count}", 4)
        frame = 512 * 512 * 4
        tracemalloc.start()
        files = [
            *write_segmentation(made.slices, lambda _: np.ones((64, 64), dtype=bool), made.folder,
                                cell_px=8, threshold_hu=150),
            *write_parametric_map(made.slices, lambda _: np.ones((512, 512), np.float16),
                                  made.folder, draws=2),
        ]  # fmt: skip
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert sum(file.stat().st_size for file in files) > count * frame
    assert peaks[1] < peaks[0] + 2 * frame  # twelve more frames are 12 MiB


def test_the_side_is_told_where_the_object_may_have_it(make: Make) -> None:
    made = make(BodyPartExamined="KNEE", Laterality="L")
    assert made.parametric_map().Laterality == "L"
    assert "Laterality" not in made.segmentation()
