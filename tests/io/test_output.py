"""Outputs of every format count what their words cannot hold."""

from dataclasses import replace

import numpy as np
import pytest

from medqdm import io
from medqdm.volume import Volume

SETTINGS = io.SeriesSettings(
    upscale=2, description="test", software_version="0", weights_id="w", uid_entropy=()
)


@pytest.mark.parametrize("file_format", io.FORMATS)
@pytest.mark.parametrize("seed", range(4))
def test_clipped_voxels_are_counted(tmp_path, file_format: str, seed: int) -> None:
    random = np.random.default_rng(seed)
    shape = int(random.integers(1, 4)), int(random.integers(3, 9)), int(random.integers(3, 9))
    volume = Volume.from_spacing(np.zeros(shape), (2, 0.7, 0.7))
    padding = random.random(shape) < 0.3
    if seed % 2:
        volume = replace(volume, padding=padding)
    hu = random.normal(0, 30_000, (shape[0], shape[1] * 2, shape[2] * 2)).astype(np.float32)
    measured = np.ones_like(hu, dtype=bool)
    if seed % 2:
        measured = ~padding.repeat(2, axis=1).repeat(2, axis=2)
    with io.open_output(volume, tmp_path / "out", SETTINGS, file_format=file_format) as output:
        for z, image in enumerate(hu):
            output.take(z, image, {})
        output.finish()
        clipped = output.num_clipped
    expected = ((np.rint(hu) < -32768) | (np.rint(hu) > 32767)) & measured
    assert clipped == np.count_nonzero(expected) > 0


def test_slices_come_in_order_or_not_at_all(tmp_path) -> None:
    volume = Volume.from_spacing(np.zeros((3, 4, 4)), (2, 0.7, 0.7))
    image = np.zeros((8, 8), dtype=np.float32)

    def write() -> None:
        with io.open_output(volume, tmp_path / "out", SETTINGS) as output:
            output.take(0, image, {})
            output.take(2, image, {})

    with pytest.raises(ValueError, match="slice 2 cannot follow 1 slices"):
        write()
    assert not list(tmp_path.iterdir())
