"""What the tests share: an ellipse phantom and CT series written with pydicom."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import torch
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian, generate_uid

from medqdm import checkpoint
from medqdm.build import build_autoencoder, build_qdm
from medqdm.config import load_task

pydicom.config.settings.reading_validation_mode = pydicom.config.RAISE
pydicom.config.settings.writing_validation_mode = pydicom.config.RAISE

CTSeries = Callable[..., Path]


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh tiny model: two steps, residual zero, so it draws nothing of its own."""
    task = load_task("tiny", ["autoencoder.latent_scale=1.0", "diffusion.sampling_steps=2"])
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    checkpoint.save(
        path,
        task=task,
        autoencoder_state=build_autoencoder(task).state_dict(),
        qdm_state=build_qdm(task).state_dict(),
        record={"diffusion": {"lr_spacing_mm": [0.5, 0.9]}},
        dtype="float32",
    )
    return path


@pytest.fixture
def phantom() -> NDArray[np.float32]:
    """``(4, 48, 40)`` HU: air, a soft-tissue ellipse, a lung, bone and one marked voxel."""
    z, y, x = np.meshgrid(np.arange(4), np.arange(48), np.arange(40), indexing="ij")
    hu = np.full(z.shape, -1000, dtype=np.float32)
    hu[((y - 24) / 20) ** 2 + ((x - 20) / 15) ** 2 < 1] = 40
    hu[((y - 22) / 8) ** 2 + ((x - 14) / 5) ** 2 < 1] = -850
    hu[((y - 36) / 4) ** 2 + ((x - 21) / 4) ** 2 < 1] = 700
    hu += 5 * z
    hu[2, 13, 27] = 1500
    return hu


@pytest.fixture
def ct_series(tmp_path: Path, phantom: NDArray[np.float32]) -> CTSeries:
    """A function that writes a CT series and gives its folder.

    Arguments, all optional: ``hu (z, y, x)``, ``folder`` (a name below tmp_path), ``spacing_mm``
    (z, y, x), ``origin_mm``, ``orientation`` (six cosines), ``slope`` and ``intercept`` (numbers or
    one per slice), ``bits``, ``signed``, ``syntax``, ``edit(dataset, k)`` for what is odd, and
    tags by keyword.
    """

    def write(
        hu: NDArray[Any] | None = None,
        *,
        folder: str = "series",
        spacing_mm: tuple[float, float, float] = (2.5, 0.8, 0.6),
        origin_mm: tuple[float, float, float] = (-11.0, -17.0, 30.0),
        orientation: tuple[float, ...] = (1, 0, 0, 0, 1, 0),
        slope: Any = 1,
        intercept: Any = -1024,
        bits: int = 16,
        signed: bool = True,
        syntax: UID = ExplicitVRLittleEndian,
        edit: Callable[[Dataset, int], None] | None = None,
        **tags: Any,
    ) -> Path:
        hu = phantom if hu is None else np.asarray(hu)
        path = tmp_path / folder
        path.mkdir(parents=True, exist_ok=True)
        slopes, intercepts = np.broadcast_to(slope, len(hu)), np.broadcast_to(intercept, len(hu))
        normal = np.cross(orientation[:3], orientation[3:])
        common = {"study": generate_uid(), "series": generate_uid(), "frame": generate_uid()}
        for k, image in enumerate(hu):
            dataset = _slice_header(common, k)
            dataset.Rows, dataset.Columns = image.shape
            dataset.PixelSpacing = list(spacing_mm[1:])
            dataset.ImageOrientationPatient = list(orientation)
            position = np.array(origin_mm) + k * spacing_mm[0] * normal
            dataset.ImagePositionPatient = [round(float(v), 6) for v in position]
            dataset.RescaleSlope, dataset.RescaleIntercept = slopes[k], intercepts[k]
            dataset.BitsStored, dataset.HighBit = bits, bits - 1
            dataset.PixelRepresentation = int(signed)
            words = np.rint((image - float(intercepts[k])) / float(slopes[k])).astype(np.int64)
            order = "<u2" if syntax.is_little_endian else ">u2"
            dataset.add_new("PixelData", "OW", (words & 0xFFFF).astype(order).tobytes())
            for keyword, value in tags.items():
                setattr(dataset, keyword, value)
            if edit is not None:
                edit(dataset, k)
            dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
            if syntax.is_encapsulated:
                dataset.compress(syntax, generate_instance_uid=False)
            dataset.file_meta.TransferSyntaxUID = syntax
            dataset.save_as(path / f"{len(hu) - k:03d}", enforce_file_format=True)
        return path

    return write


def _slice_header(common: dict[str, str], k: int) -> Dataset:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = CTImageStorage, generate_uid()
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = common["study"], common["series"]
    dataset.FrameOfReferenceUID = common["frame"]
    dataset.Modality, dataset.PatientPosition = "CT", "HFS"
    dataset.BodyPartExamined = "CHEST"
    dataset.PatientName, dataset.PatientID = "Phantom^Ellipse", "0000"
    dataset.PatientBirthDate, dataset.PatientSex = "", "O"
    dataset.StudyDate, dataset.StudyTime = "20200102", "030405"
    dataset.StudyID, dataset.AccessionNumber, dataset.ReferringPhysicianName = "1", "", ""
    dataset.PositionReferenceIndicator = ""
    dataset.AcquisitionNumber, dataset.AcquisitionDate = 1, "20200102"
    dataset.SeriesNumber, dataset.SeriesDescription = 3, "Thorax"
    dataset.InstanceNumber = k + 1
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL", "CT_SOM5"]
    dataset.Manufacturer, dataset.ManufacturerModelName = "Maker", "Scanner 64"
    dataset.StationName, dataset.SoftwareVersions = "CT1", "VB10"
    dataset.KVP, dataset.SliceThickness, dataset.ConvolutionKernel = 120, 3, "B30f"
    dataset.SamplesPerPixel, dataset.BitsAllocated = 1, 16
    dataset.PhotometricInterpretation = "MONOCHROME2"
    return dataset
