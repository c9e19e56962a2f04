"""Subject: the model and the LR slices that a benchmark runs."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from medqdm import checkpoint, io
from medqdm.build import build_autoencoder, build_qdm
from medqdm.config import Task, load_task, override
from medqdm.data.slices import to_hr_slices
from medqdm.degrade import degrade, draw
from medqdm.diffusion.noise import SliceNoise
from medqdm.engine import Engine
from medqdm.enhancer import Enhancer
from medqdm.errors import MedQDMError
from medqdm.loading import load_enhancer
from medqdm.volume import Volume

PHANTOM_SPACING_MM = (3.0, 2.8, 2.8)
RANDOM_WEIGHTS_SD = 0.02  # of weights that start at zero, so that no branch is empty


@dataclass(frozen=True, eq=False)
class Subject:
    """What a benchmark runs.

    Args:
        enhancer: the loaded model.
        lr: LR slices ``(n, tile, tile)`` of one tile each: their output is ``task.slice_px`` wide.
        slices: what they are, in words; nothing of the patient.
        is_random: whether the weights are random: true in speed, worthless in quality.
    """

    enhancer: Enhancer
    lr: Volume
    slices: str
    is_random: bool


def open_subject(  # noqa: PLR0913  (all by keyword but one)
    series: Path | None,
    *,
    task: str | None,
    weights: Path | None,
    device: str,
    settings: Sequence[str],
    series_uid: str | None,
    num_slices: int | None,
    degraded: bool,
    random: bool,
) -> Subject:
    """Load the model and the slices.

    Args:
        series: what ``io.read`` takes; None: a phantom with noise.
        task: name of a task; None: sr4, or whatever the weights are for.
        weights: a weights file; None: the task's bundled one, or random ones if it has none.
        device: see ``choose_device``.
        settings: ``key=value`` changes to the task.
        series_uid: SeriesInstanceUID, where there are several.
        num_slices: slices in a batch, spread over the series; None: 1 on a CPU, 8 on a GPU.
        degraded: the series is HR: reduce it with the task's test degradation first. Else it is
            LR as it is, and its middle is taken.
        random: random weights of the task's networks, whatever is bundled.

    Raises:
        MedQDMError: the series, the weights or the settings do not fit.
    """
    is_random = random or (weights is None and not _is_bundled(task or "sr4"))
    if is_random:
        if weights is not None:
            raise MedQDMError("--random: must stand without --weights, got both; leave one out")
        enhancer = _random_enhancer(load_task(task or "sr4", settings), device)
    else:
        _check_networks_stay(settings)
        enhancer = load_enhancer(task=task, weights=weights, device=device, settings=settings)
    count = num_slices or (8 if enhancer.device.type == "cuda" else 1)
    if series is None:
        side = enhancer.task.tile_lr_px
        hu = np.stack([phantom(side, seed=k) for k in range(count)])
        volume = Volume.from_spacing(hu, PHANTOM_SPACING_MM)
        return Subject(enhancer, volume, f"phantom, {side} x {side}", is_random)
    found = _choose(io.read(series, series=series_uid), count)
    lr = _degraded(found, enhancer.task) if degraded else _middle(found, enhancer.task.tile_lr_px)
    how = "reduced by the test degradation" if degraded else "their middle, as it is"
    size = f"{lr.shape[2]} x {lr.shape[1]}"
    return Subject(enhancer, lr, f"slices of a CT series, {how}, {size}", is_random)


def _is_bundled(task: str) -> bool:
    return (checkpoint.WEIGHTS_FOLDER / f"{task}.safetensors").is_file()


def _check_networks_stay(settings: Sequence[str]) -> None:
    """Weights know one network; ``--set`` may not claim that another one was measured."""
    for setting in settings:
        key = setting.partition("=")[0].strip()
        if key.startswith(("transformer.", "autoencoder.")) and key != "transformer.packing":
            raise MedQDMError(
                f"--set {key}: must leave the networks of the weights as they are, got another "
                "size; add --random to measure its speed with random weights"
            )


def _random_enhancer(task: Task, device: str) -> Enhancer:
    """An enhancer with random weights of the task's networks, by way of a weights file."""
    for key in ("autoencoder.latent_scale", "diffusion.residual_deviation"):
        section, name = key.split(".")
        if getattr(getattr(task, section), name) is None:
            task = override(task, [f"{key}=1.0"])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        networks = build_autoencoder(task), build_qdm(task)
        for network in networks:
            _fill_zeros(network)
    with tempfile.TemporaryDirectory(prefix="medqdm-") as folder:
        path = Path(folder) / f"{task.name}.safetensors"
        checkpoint.save(
            path,
            task=task,
            autoencoder_state=networks[0].state_dict(),
            qdm_state=networks[1].state_dict(),
            record={"random": True},
            dtype="float16",
        )
        return Enhancer(path, device=device)


def _fill_zeros(network: nn.Module) -> None:
    for parameter in network.parameters():
        if parameter.ndim > 1 and not parameter.any():
            nn.init.normal_(parameter, std=RANDOM_WEIGHTS_SD)


def _choose(volume: Volume, count: int) -> Volume:
    """``count`` slices spread over a volume; more than it has are taken twice."""
    chosen = ((np.arange(count) + 0.5) / count * len(volume.hu)).astype(int)
    hu = np.stack([np.asarray(volume.hu[int(z)]) for z in chosen])
    return replace(volume, hu=hu, origins_mm=volume.origins_mm[chosen], padding=None)


def _degraded(volume: Volume, task: Task) -> Volume:
    hr, (y_mm, x_mm) = to_hr_slices(volume, task.slice_px)
    window = task.hu_window
    lr = []
    for k, image in enumerate(hr):
        params = draw(task.test_degradation, np.random.RandomState(k))
        normal = torch.from_numpy(window.normalize(image.astype(np.float32)))[None]
        lr.append(window.denormalize(degrade(normal, params, task.upscale)[0].numpy()))
    spacing = (PHANTOM_SPACING_MM[0], y_mm * task.upscale, x_mm * task.upscale)
    return Volume.from_spacing(np.stack(lr), spacing)


def _middle(volume: Volume, side: int) -> Volume:
    """Squares of ``side`` from the middle; a smaller matrix has its edge repeated."""
    hu = np.asarray(volume.hu)
    missing = [max(0, side - length) for length in hu.shape[1:]]
    widths = [(0, 0), *((m // 2, m - m // 2) for m in missing)]
    hu = np.pad(hu, widths, mode="edge")
    y, x = ((length - side) // 2 for length in hu.shape[1:])
    return Volume.from_spacing(
        hu[:, y : y + side, x : x + side], (PHANTOM_SPACING_MM[0], *volume.spacing_mm)
    )


def phantom(side: int, *, seed: int = 0) -> NDArray[np.float32]:
    """A body with lungs and bones, about a quarter of whose cells hold detail as on real CT.

    Args:
        side: in LR pixels.
        seed: of its noise.

    Returns:
        ``(side, side)`` in HU.
    """
    random = np.random.default_rng(seed)
    y, x = np.meshgrid(*2 * [np.linspace(-1, 1, side)], indexing="ij")
    hu = np.full((side, side), -1000.0)

    def fill(at: tuple[float, float], radii: tuple[float, float], value: float, sd: float) -> None:
        inside = ((y - at[0]) / radii[0]) ** 2 + ((x - at[1]) / radii[1]) ** 2 < 1
        hu[inside] = random.normal(value, sd, int(inside.sum()))

    fill((0.05, 0.0), (0.72, 0.9), 40, 12)
    for left in (-1, 1):
        fill((-0.05, left * 0.45), (0.5, 0.3), -820, 110)  # lungs, vessels as noise
        fill((0.1, left * 0.82), (0.3, 0.04), 600, 60)
    fill((0.55, 0.0), (0.14, 0.12), 500, 90)
    return hu.astype(np.float32)


def every_region(steps: int) -> list[str]:
    """Settings with which all refined regions run at all of so many steps."""
    return [f"diffusion.sampling_steps={steps}", "diffusion.sampler.name=uniform"]


def lr_batch(hu: NDArray[np.float32], engine: Engine) -> Tensor:
    """Slices ``(n, y, x)`` in HU as the engine takes them."""
    device = next(engine.parameters()).device
    return torch.from_numpy(engine.task.hu_window.normalize(hu))[:, None].to(device)


def noise_like(z_lr: Tensor) -> Callable[[int], Tensor]:
    """Noise for slices 0, 1, ..., each with its own."""
    _, channels, height, width = z_lr.shape
    slices = [SliceNoise(0, z, (channels, height, width), 0.0) for z in range(len(z_lr))]
    return lambda k: torch.stack([noise.draw(k) for noise in slices]).to(z_lr.device)
