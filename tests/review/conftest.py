"""A small enhanced series as medqdm enhance leaves it, and a browser without a screen."""

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from medqdm import io
from medqdm.config import load_task
from medqdm.metrics import reduce_by_area
from medqdm.picture import upsample_bicubic
from medqdm.volume import Volume

UPSCALE = 4
SHAPE = (7, 30, 44)  # of the source
SPACING_MM = (2.5, 1.2, 0.8)


@dataclass(frozen=True)
class Case:
    """An enhanced folder, its source, and what both hold."""

    out: Path
    source: Path
    source_hu: NDArray[np.float32]
    enhanced_hu: NDArray[np.float32]
    refined: NDArray[np.bool_]
    deviation_hu: NDArray[np.float16]

    def bicubic_hu(self, z: int) -> NDArray[np.float32]:
        return upsample_bicubic(self.source_hu[z], UPSCALE)


def write_case(folder: Path, shape: tuple[int, int, int] = SHAPE, seed: int = 0) -> Case:
    """Noise with a bright square of 8 x 8 output pixels, named Doe^Jane."""
    random = np.random.default_rng(seed)
    z, height, width = shape
    fine = (z, height * UPSCALE, width * UPSCALE)
    enhanced = np.rint(random.uniform(-900, 900, fine)).astype(np.float32)
    enhanced[:, 40:48, 60:68] = 1500
    coarse = np.rint(reduce_by_area(enhanced, UPSCALE)).astype(np.float32)
    source = Volume.from_spacing(coarse, SPACING_MM)
    folder.mkdir(parents=True, exist_ok=True)
    source_file = folder / "Doe^Jane.nii.gz"
    io.write(source, source, source_file)
    source = io.read(source_file, slice_axis=2)
    io.write_series(
        source, iter(enhanced), folder / "out", upscale=UPSCALE, description="test",
        software_version="0", weights_id="0", uid_entropy=["0"],
    )  # fmt: skip
    refined = np.zeros((z, -(-height // 2), -(-width // 2)), dtype=bool)
    refined[:, 4:9, 5:12] = True
    deviation = random.uniform(0, 60, fine).astype(np.float16)
    np.savez_compressed(folder / "out" / "refined.npz", refined=refined)
    np.savez_compressed(folder / "out" / "uncertainty.npz", deviation_hu=deviation)
    task = load_task("tiny").model_dump(mode="json", exclude={"training"})
    (folder / "out" / "run.json").write_text(json.dumps({"task": task}))
    return Case(folder / "out", source_file, coarse, enhanced, refined, deviation)


@pytest.fixture(scope="session")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return write_case(tmp_path_factory.mktemp("review"))


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Chromium; without it tests are skipped, but not where all tools are required."""
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if (program is None or driver is None) and "MEDQDM_REQUIRE_JUDGES" not in os.environ:
        pytest.skip("chromium and chromedriver are not installed")
    assert program, "chromium must be installed for this run"
    assert driver, "chromedriver must be installed for this run"
    from selenium import webdriver  # noqa: PLC0415  (only where there is a browser)

    options = webdriver.ChromeOptions()
    options.binary_location = program
    profile = tmp_path_factory.mktemp("chromium")
    for argument in (
        "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
        "--window-size=1400,860", "--force-device-scale-factor=1", f"--user-data-dir={profile}",
    ):  # fmt: skip
        options.add_argument(argument)
    running = webdriver.Chrome(options, webdriver.ChromeService(driver))
    running.set_window_size(1400, 860)
    yield running
    running.quit()


@pytest.fixture(scope="session")
def exams(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``enhanced/`` and ``sources/`` of two exams, ``references/`` of the first, all Doe^Jane."""
    root = tmp_path_factory.mktemp("exams")
    for name in ("enhanced", "sources", "references"):
        (root / name).mkdir()
    for k in (1, 2):
        case = write_case(root / f"exam-{k}", seed=k)
        shutil.move(case.out, root / "enhanced" / f"exam-{k}")
        shutil.move(case.source, root / "sources" / f"Doe^Jane-{k}.nii.gz")
        if k == 1:
            source = Volume.from_spacing(case.source_hu, SPACING_MM)
            truth = source.with_pixels((case.enhanced_hu + 7).clip(-1000, 2000))
            io.write(truth, truth, root / "references" / "Doe^Jane-truth.nii.gz")
    return root
