"""Parity with the published implementation, on tests/parity and the folder MEDQDM_PARITY_DIR."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from medqdm.build import build_autoencoder, build_qdm
from medqdm.config import Task, TransformerSection
from medqdm.diffusion.process import Process
from medqdm.diffusion.quadtree import Quadtree
from medqdm.diffusion.sampler import sample
from medqdm.diffusion.schedule import Schedule
from medqdm.imported import import_weights
from medqdm.models.autoencoder import KLAutoencoder
from medqdm.models.modulations import Modulations
from medqdm.models.transformer import QDM
from medqdm.models.windows import WindowIndex

OWN = Path(__file__).parent / "parity"
OTHER = os.environ.get("MEDQDM_PARITY_DIR")
FOLDERS = [OWN, *([Path(OTHER)] if OTHER else [])]
CASES = [path for folder in FOLDERS for path in sorted(folder.glob("*.json"))]
QDM_CASES = [path for path in CASES if path.stem.startswith("qdm")]
VAE_CASES = [path for path in CASES if path.stem.startswith("kl_vae")]


class Case:
    def __init__(self, path: Path) -> None:
        self.config = json.loads(path.read_text(encoding="utf-8"))
        self.weights = path.with_name(f"{path.stem}_weights.npz")
        with np.load(path.with_suffix(".npz")) as arrays:
            self.arrays = {name: torch.from_numpy(arrays[name]) for name in arrays}

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.arrays[name]


class QDMCase(Case):
    def __init__(self, path: Path) -> None:
        super().__init__(path)
        sizes = {key: self.config[key] for key in ("depth", "hidden_size", "num_heads")}
        task = Task(
            name="parity",
            upscale=self.config["scale"],
            transformer=TransformerSection(size="custom", **sizes),
        )
        imported = import_weights(qdm=self.weights, autoencoder=None, task=task)
        self.task = imported.task
        self.network: QDM = build_qdm(self.task).eval()
        self.network.load_state_dict(imported.qdm)
        self.windows = WindowIndex(self["patch_mask"].bool())

    def modulations(self, t: int) -> Modulations:
        return self.network.modulations(torch.tensor([t]))

    def run(self, refined: torch.Tensor | WindowIndex | None) -> torch.Tensor:
        with torch.inference_mode():
            return self.network(self["x"], self["t"], self["lq"], refined)


@pytest.fixture(scope="module", params=QDM_CASES, ids=lambda path: path.stem)
def qdm(request):
    return QDMCase(request.param)


@pytest.fixture(scope="module", params=VAE_CASES, ids=lambda path: path.stem)
def vae(request):
    return Case(request.param)


def assert_same(got: torch.Tensor, expected: torch.Tensor, atol: float = 1e-5) -> None:
    torch.testing.assert_close(got, expected, atol=atol, rtol=0)


def test_cases_of_every_folder_are_found():
    assert {path.parent for path in CASES} == set(FOLDERS)
    assert {path.stem for path in CASES} >= {"qdm_sr4", "qdm_sr8", "kl_vae"}


def test_made_task_follows_the_weights(qdm):
    task, config = qdm.task, qdm.config
    assert task.latent_size == config["input_size"]
    assert task.autoencoder.latent_channels == config["latent_channels"]
    assert task.autoencoder.image_channels == config["lq_channels"]
    assert task.transformer.model_dump() == {
        "size": "custom",
        "depth": config["depth"],
        "hidden_size": config["hidden_size"],
        "num_heads": config["num_heads"],
        "prediction": "z_0",
        "mask_input": False,
        "packing": "windows",
        "corrector": None,
    }
    assert task.diffusion.published_masking
    assert task.quadtree.inclusive
    assert task.autoencoder.latent_scale == 0.1


def test_dense_output(qdm):
    assert_same(qdm.run(None), qdm["dense_output"])


def test_upstream_output(qdm):
    assert_same(qdm.run(torch.zeros_like(qdm["patch_mask"]).bool()), qdm["upstream_output"])


def test_masked_output(qdm):
    assert_same(qdm.run(qdm.windows), qdm["masked_output"])


def test_masks(qdm):
    _, _, height, width = qdm["x"].shape
    tree = Quadtree(qdm["lq"], qdm.config["threshold"], inclusive=qdm.task.quadtree.inclusive)
    assert torch.equal(tree.at(height // 2, width // 2), qdm["patch_mask"].bool())
    assert torch.equal(tree.at(height, width)[:, None], qdm["latent_mask"].bool())
    assert torch.equal(qdm.windows.refined, qdm["latent_mask"].bool())


def schedule_of(task: Task) -> Schedule:
    section = task.diffusion
    return Schedule(
        num_steps=section.num_steps,
        kappa=section.kappa,
        min_noise_level=section.min_noise_level,
        max_sqrt_eta=section.max_sqrt_eta,
        power=section.power,
    )


def test_schedule(qdm):
    schedule = schedule_of(qdm.task)
    assert schedule.kappa == qdm.config["kappa"]
    expected = torch.tensor(qdm.config["sqrt_etas"], dtype=torch.float64)
    assert_same(schedule.sqrt_eta, expected, atol=1e-12)


def test_trajectory(qdm):
    schedule = schedule_of(qdm.task)
    process = Process(schedule, published_masking=qdm.task.diffusion.published_masking)
    noise = [qdm["prior_noise"], *qdm["step_noise"]]
    refined = qdm["latent_mask"].bool()
    with torch.inference_mode():
        steps = list(
            sample(
                lambda z, t: qdm.network(z, qdm.modulations(t), qdm["lq"], qdm.windows),
                process,
                qdm["z_lq"],
                steps=schedule.subset(None),
                gamma=1.0,
                noise=noise.__getitem__,
                refined=refined,
            )
        )
    assert_same(process.prior(qdm["z_lq"], noise[0], refined), qdm["trajectory"][0])
    assert_same(torch.stack([step.z_0 for step in steps]), qdm["pred_x0"])
    assert_same(torch.stack([step.z_s for step in steps]), qdm["trajectory"][1:])


def test_autoencoder(vae):
    imported = import_weights(qdm=None, autoencoder=vae.weights, task=Task(name="parity"))
    section = imported.task.autoencoder
    for key in ("num_res_blocks", "mid_attention", "image_channels", "latent_channels"):
        assert getattr(section, key) == vae.config[key]
    assert list(section.channels) == vae.config["channels"]

    network: KLAutoencoder = build_autoencoder(imported.task).eval()
    network.load_state_dict(imported.autoencoder)
    with torch.inference_mode():
        mean, log_variance = network.moments(vae["image"])
        assert_same(mean, vae["latent_mean"], atol=1e-4)
        assert_same(log_variance, vae["latent_logvar"], atol=1e-4)
        assert_same(network.decode(vae["latent_mean"]), vae["reconstruction"], atol=1e-4)
