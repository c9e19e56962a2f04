"""Latents: what the diffusion must know of an autoencoder's, measured on training slices."""

import logging

import torch

from medqdm.build import Autoencoder, build_qdm
from medqdm.config import Task
from medqdm.data import SliceDataModule
from medqdm.device import autocast
from medqdm.engine import Engine

SCALE_SLICES = 64  # HR slices over which the latents' variance is measured
RESIDUAL_SAMPLES = 16  # training samples over which the residual is

log = logging.getLogger(__name__)


@torch.no_grad()
def measure_residual_deviation(network: Autoencoder, source: SliceDataModule, task: Task) -> float:
    """Root mean square of ``z_0 - z_lr`` in the refined regions of training samples.

    Args:
        network: the trained autoencoder, its latent scale in the task.
        source: where the samples come from.
        task: precision, threshold and window.
    """
    device = next(network.parameters()).device
    engine = Engine(task, network, build_qdm(task)).to(device).eval()
    squares, count = 0.0, 0
    for sample in source.samples(RESIDUAL_SAMPLES):
        hr, lr = sample["hr"][None].to(device), sample["lr"][None].to(device)
        with autocast(device, task.training.precision):
            z_0, z_lr = engine.encode(hr), engine.encode(engine.upsample(lr))
        refined = engine.index(engine.quadtree(lr), z_lr).refined
        squares += float((((z_0 - z_lr) ** 2) * refined).sum())
        count += int(refined.sum()) * z_lr.shape[1]
    deviation = round(max(squares / max(count, 1), 1e-6) ** 0.5, 4)
    log.info("residual_deviation measured over %d slices: %s", RESIDUAL_SAMPLES, deviation)
    return deviation


@torch.no_grad()
def measure_latent_scale(
    network: Autoencoder, source: SliceDataModule, task: Task
) -> tuple[float, ...]:
    """The multiplier per channel that gives the latents of training slices unit variance.

    Args:
        network: the trained autoencoder.
        source: where the slices come from.
        task: precision and window.
    """
    device = next(network.parameters()).device
    network.eval()
    latents = []
    with autocast(device, task.training.precision):
        for hr in source.sample_hr(SCALE_SLICES):
            latents.append(network.encode(hr[None].to(device)).double().transpose(0, 1).flatten(1))
    deviations = torch.cat(latents, dim=1).std(dim=1, correction=0).clamp_min(1e-6)
    scale = tuple(round(float(1 / deviation), 6) for deviation in deviations)
    log.info("latent_scale measured over %d slices: %s", SCALE_SLICES, scale)
    return scale
