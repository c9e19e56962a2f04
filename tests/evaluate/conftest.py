"""Small volumes and masks for the tests of evaluate."""

from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from numpy.typing import NDArray


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
