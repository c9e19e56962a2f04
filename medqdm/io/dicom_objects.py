"""DICOM objects beside a derived series: where detail was synthesised, and how unsure it is."""

from collections.abc import Callable, Sequence
from pathlib import Path

import highdicom
import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from medqdm.io.dicom_overlay import Overlay, Uids, write_overlay
from medqdm.io.dicom_uid import make_uid

REFINED_LABEL = "synthesised detail"
_LARGEST_HU = 65504.0  # of float16, in which deviations are kept
_WINDOW_HU = (50.0, 100.0)  # centre and width: what a deviation usually is
_LARGEST_IS = 2**31 - 1
_ORANGE_CIELAB = (72, 22, 76)  # of REFINED_RGB in medqdm.picture


def write_segmentation(
    slices: Sequence[Path],
    cells: Callable[[int], NDArray[np.bool_]],
    folder: Path,
    *,
    cell_px: int,
    threshold_hu: float,
) -> tuple[Path, ...]:
    """Write where detail was synthesised as a DICOM Segmentation, on the pixels of the series.

    One binary segment, one frame for each slice, 1 bit a pixel. A series of very many large slices
    takes several objects of one series.

    Args:
        slices: the files of the enhanced series, in slice order.
        cells: index of a slice -> ``(rows, columns)`` refined cells.
        folder: where ``segmentation.dcm`` goes.
        cell_px: side of a cell in pixels of the series; the last ones may be cut.
        threshold_hu: range in HU from which on a cell is refined.

    Returns:
        The files.

    Raises:
        MedQDMError: an object would mislead a reader.
    """

    def describe(sources: Sequence[Dataset], first: Dataset, uids: Uids) -> Dataset:
        segment = highdicom.seg.SegmentDescription(
            segment_number=1,
            segment_label=REFINED_LABEL,
            segmented_property_category=codes.SCT.SpatialAndRelationalConcept,
            segmented_property_type=codes.DCM.ImageRegion,
            algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=highdicom.AlgorithmIdentificationSequence(
                name="medqdm quadtree",
                family=codes.DCM.NeighborhoodAnalysis,
                version=_version(first),
                source="medqdm",
                parameters={"threshold_hu": f"{threshold_hu:g}", "cell_px": f"{cell_px}"},
            ),
            tracking_id=f"medqdm {REFINED_LABEL}",
            tracking_uid=make_uid("segment", uids.series),
            display_color=highdicom.color.CIELabColor(*_ORANGE_CIELAB),
        )
        segment.SegmentDescription = (
            "Regions in which an algorithm drew detail that was not measured. Research use only."
        )
        return highdicom.seg.Segmentation(
            source_images=sources,
            pixel_array=np.ones((len(sources), 1, 1), dtype=np.uint8),
            segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
            segment_descriptions=[segment],
            series_number=_series_number(first, 40),
            series_description=_description(first, "refined regions"),
            content_label="REFINED_REGIONS",
            content_description="Where detail is synthetic; research use only",
            omit_empty_frames=False,
            **uids.options(),
            **_equipment(first),
        )

    def frame(z: int) -> NDArray[np.bool_]:
        return cells(z).repeat(cell_px, axis=0).repeat(cell_px, axis=1)

    overlay = Overlay(
        "segmentation", "PixelData", b"OB", 1, frame, describe, highdicom.seg.Segmentation.from_file
    )
    return write_overlay(slices, folder / "segmentation.dcm", overlay)


def write_parametric_map(
    slices: Sequence[Path],
    deviation_hu: Callable[[int], NDArray[np.floating]],
    folder: Path,
    *,
    draws: int,
) -> tuple[Path, ...]:
    """Write the uncertainty as a DICOM Parametric Map in HU, on the pixels of the series.

    The stored values are 32-bit floats in HU, so that a reader that knows nothing of real world
    values shows the right numbers; they are not compressed. At most 1 GiB goes into one object;
    larger series have several, which share a series.

    Args:
        slices: the files of the enhanced series, in slice order.
        deviation_hu: index of a slice -> ``(rows, columns)`` standard deviation over draws in HU.
        folder: where ``uncertainty.dcm`` goes.
        draws: how many there were.

    Returns:
        The files.

    Raises:
        MedQDMError: an object would mislead a reader.
    """

    def describe(sources: Sequence[Dataset], first: Dataset, uids: Uids) -> Dataset:
        mapping = highdicom.pm.RealWorldValueMapping(
            lut_label="HU",
            lut_explanation=f"Standard deviation over {draws} draws in HU",
            unit=codes.UCUM.HounsfieldUnit,
            value_range=(0.0, _LARGEST_HU),
            slope=1,
            intercept=0,
            quantity_definition=Code("386136009", "SCT", "Standard Deviation"),
        )
        centre, width = _WINDOW_HU
        return highdicom.pm.ParametricMap(
            source_images=sources,
            pixel_array=np.zeros((len(sources), 1, 1), dtype=np.float32),
            real_world_value_mappings=[mapping],
            voi_lut_transformations=[
                highdicom.VOILUTTransformation(window_center=centre, window_width=width)
            ],
            contains_recognizable_visual_features=first.get("RecognizableVisualFeatures") != "NO",
            content_qualification=highdicom.ContentQualificationValues.RESEARCH,
            series_number=_series_number(first, 60),
            series_description=_description(first, "uncertainty HU"),
            content_label="UNCERTAINTY_HU",
            content_description=f"Deviation over {draws} draws; a model's; research use only",
            **uids.options(),
            **_equipment(first),
        )

    def frame(z: int) -> NDArray[np.float32]:
        return deviation_hu(z).astype("<f4")

    name = f"uncertainty over {draws} draws"
    overlay = Overlay(
        name, "FloatPixelData", b"OF", 32, frame, describe, highdicom.pm.ParametricMap.from_file
    )
    return write_overlay(slices, folder / "uncertainty.dcm", overlay)


def _version(first: Dataset) -> str:
    return str(first.SoftwareVersions[0])


def _equipment(first: Dataset) -> dict[str, object]:
    """The maker; its weights are the nearest thing to a serial number."""
    versions = [str(version) for version in first.SoftwareVersions]
    return {
        "manufacturer": "medqdm",
        "manufacturer_model_name": "medqdm",
        "software_versions": tuple(versions),
        "device_serial_number": versions[-1],
    }


def _series_number(first: Dataset, step: int) -> int:
    """Beside the series' own number, which ends in the factor."""
    number = int(first.SeriesNumber)
    return number + step if number + step <= _LARGEST_IS else step


def _description(first: Dataset, what: str) -> str:
    described = str(first.SeriesDescription)
    return f"{described[: 64 - len(what) - 1].rstrip()} {what}"
