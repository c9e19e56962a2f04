"""Small volumes and settings for the tests of rivals."""

from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from medqdm.config import Task
from studies.baselines import rival_task

SHORT = (
    "training.regression={steps: 4, batch_size: 2, crop_px: 32}",
    "training.diffusion.steps=4",
    "training.diffusion.batch_size=2",
    "training.validate_every=2",
    "training.checkpoint_every=2",
    "training.validation_slices=1",
    "training.validation_patients=[p2]",
    "training.accelerator=cpu",
    "training.precision=fp32",
    "training.ema_decay=0.5",
    "diffusion.sampling_steps=2",
)


@pytest.fixture(autouse=True, scope="package")
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="package")
def edsr_task() -> Task:
    """A small regression network, four steps."""
    return rival_task("edsr", "tiny", ["rival.width=8", "rival.blocks=1", *SHORT])


@pytest.fixture(scope="package")
def unet_task() -> Task:
    """A small ResShift rival, four steps."""
    return rival_task("resshift", "tiny", ["rival.channels=[32, 32]", *SHORT])


@pytest.fixture(scope="package")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three patients of two 64 x 64 slices: a noisy disc with a bone in air."""
    folder = tmp_path_factory.mktemp("data")
    y, x = np.mgrid[:64, :64] - 31.5
    for k in range(3):
        hu = np.full((2, 64, 64), -1000.0)
        hu[:, np.hypot(y, x) < 26 - k] = 40
        hu[:, np.hypot(y - 12, x) < 5 + k] = 700
        hu += np.random.default_rng(k).normal(0, 20, hu.shape)
        image = nibabel.Nifti1Image(
            hu.transpose(2, 1, 0).astype(np.int16), np.diag([-0.7, -0.7, 3.0, 1.0])
        )
        nibabel.save(image, folder / f"p{k}.nii.gz")
    return folder
