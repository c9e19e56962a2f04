"""Average: half way between two models, and what cannot be averaged."""

from pathlib import Path

import pytest
import torch

from medqdm import checkpoint
from medqdm.build import build_autoencoder, build_qdm
from medqdm.config import load_task
from medqdm.errors import MedQDMError
from medqdm.training.average import average


def save(path: Path, value: float, *settings: str, whole: bool = True) -> Path:
    """Weights that are all one number."""
    task = load_task("tiny", ["autoencoder.latent_scale=1.0", *settings])
    states = [
        {name: torch.full_like(v, value) for name, v in network.state_dict().items()}
        for network in (build_autoencoder(task), build_qdm(task))
    ]
    checkpoint.save(
        path,
        task=task,
        autoencoder_state=states[0],
        qdm_state=states[1] if whole else None,
        record={"diffusion": {"steps": int(value)}},
        dtype="float32",
    )
    return path


def test_a_quarter_of_the_way(tmp_path: Path) -> None:
    first = save(tmp_path / "a.safetensors", 1)
    second = save(tmp_path / "b.safetensors", 5, "diffusion.one_step=mean")
    average(first, second, 0.25, tmp_path / "out.safetensors")
    made, begun = checkpoint.load(tmp_path / "out.safetensors"), checkpoint.load(second)
    for network in (made.autoencoder, made.qdm):
        assert all((v == 2).all() for v in network.state_dict().values())
    assert made.task == begun.task
    assert made.record["diffusion"] == {"steps": 5}
    assert made.record["average"] == {
        "of_sha256": [checkpoint.load(first).sha256, begun.sha256],
        "share": 0.25,
    }


def test_what_cannot_be_averaged_is_refused(tmp_path: Path) -> None:
    first = save(tmp_path / "a.safetensors", 1)
    out = tmp_path / "out.safetensors"
    for other in (
        save(tmp_path / "b.safetensors", 1, "transformer.depth=3"),
        save(tmp_path / "c.safetensors", 1, whole=False),
    ):
        with pytest.raises(MedQDMError, match="must be a whole model with the transformer of"):
            average(first, other, 0.5, out)
    with pytest.raises(MedQDMError, match=r"share must be 0 to 1, got 1\.5"):
        average(first, first, 1.5, out)
    assert not out.exists()
