"""Small volumes and masks for the tests of evaluate."""

from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from medqdm import checkpoint
from medqdm.build import build_autoencoder, build_qdm
from medqdm.config import load_task


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def volumes(tmp_path: Path) -> Path:
    """One patient of three 70 x 78 slices, which are cropped to 64 x 64."""
    hu = np.full((3, 70, 78), -1000)
    hu[:, 5:65, 10:70] = 40 + np.random.default_rng(0).normal(0, 50, (3, 60, 60))
    (tmp_path / "data").mkdir()
    affine = np.diag([-0.7, -0.7, 3.0, 1.0])  # x and y run as in a DICOM series
    image = nibabel.Nifti1Image(hu.transpose(2, 1, 0).astype(np.int16), affine)
    nibabel.save(image, tmp_path / "data" / "a.nii.gz")
    return tmp_path / "data"


@pytest.fixture
def marked() -> NDArray[np.uint8]:
    """A mask of the volumes' shape, alike under no flip; rows 20 to 29, columns 30 to 49."""
    mask = np.zeros((3, 70, 78), dtype=np.uint8)
    mask[1, 20:30, 30:50] = 2
    return mask


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model of 2 x 2 windows that draws something, if nothing good."""
    task = load_task(
        "tiny",
        [
            "autoencoder.latent_scale=1",
            "slice_px=128",
            "diffusion.sampling_steps=2",
            "transformer.packing=tokens",
        ],
    )
    torch.manual_seed(0)
    qdm = build_qdm(task)
    with torch.no_grad():
        for parameter in qdm.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    path = tmp_path_factory.mktemp("model") / "weights.safetensors"
    checkpoint.save(
        path,
        task=task,
        autoencoder_state=build_autoencoder(task).state_dict(),
        qdm_state=qdm.state_dict(),
        record={},
        dtype="float32",
    )
    return path


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two patients of two slices: soft tissue, one side of it noisy, in air."""
    folder = tmp_path_factory.mktemp("data")
    random = np.random.default_rng(0)
    y, x = np.mgrid[:128, :128] - 63.5
    for name in ("a", "b"):
        hu = np.full((2, 128, 128), -1000.0)
        hu[:, np.hypot(y, x) < 60] = 40
        hu += random.normal(0, 10, hu.shape)
        hu[:, 30:98, 70:110] += random.normal(0, 100, (2, 68, 40))
        affine = np.diag([-0.7, -0.7, 3.0, 1.0])
        image = nibabel.Nifti1Image(hu.transpose(2, 1, 0).astype(np.int16), affine)
        nibabel.save(image, folder / f"{name}.nii.gz")
    return folder
