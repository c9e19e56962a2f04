from pathlib import Path

import numpy as np
import pytest

from medqdm import checkpoint
from medqdm.build import build_autoencoder, build_qdm, build_spread
from medqdm.config import load_task
from medqdm.enhancer import Enhancer
from medqdm.errors import MedQDMError
from medqdm.opened import open_engine


def test_a_spread_knows_one_process(tmp_path: Path) -> None:
    task = load_task("tiny", ["autoencoder.latent_scale=1.0"])
    path = tmp_path / "wide.safetensors"
    checkpoint.save(
        path, task=task, autoencoder_state=build_autoencoder(task).state_dict(),
        qdm_state=build_qdm(task).state_dict(), record={}, dtype="float32",
        spread_state=build_spread(task).state_dict(),
    )  # fmt: skip
    other = ["diffusion.num_steps=30", "diffusion.sampling_steps=4"]
    with pytest.raises(
        MedQDMError, match=r"got num_steps = 30; leave it out, or add diffusion\.sp"
    ):
        open_engine(path, other)
    fine = open_engine(path, [*other, "diffusion.spread=false"])
    assert fine.engine.task.diffusion.num_steps == 30
    enhancer = Enhancer(fine, device="cpu")
    assert np.isfinite(enhancer.enhance_slice(np.zeros((16, 16), np.float32)).hu).all()


def test_stage_one_weights_are_refused(tmp_path) -> None:
    task = load_task("tiny", ["autoencoder.latent_scale=1.0"])
    path = tmp_path / "vae.safetensors"
    state = build_autoencoder(task).state_dict()
    checkpoint.save(
        path, task=task, autoencoder_state=state, qdm_state=None, record={}, dtype="float32"
    )
    with pytest.raises(MedQDMError, match="must hold a whole model, got a KL-VAE alone"):
        open_engine(path, [])
