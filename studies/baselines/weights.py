"""Weights: a rival's file, its networks, and the engine that they make."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from medqdm import checkpoint
from medqdm.build import Autoencoder, build_autoencoder
from medqdm.config import EDSRSection, ResShiftSection, Task, override
from medqdm.diffusion.policies import Cost
from medqdm.diffusion.sampler import Noise
from medqdm.engine import Drawn, Engine
from medqdm.errors import MedQDMError
from medqdm.networks import Image
from medqdm.opened import Opened, open_engine
from studies.baselines.networks import EDSR, LatentUNet


class Regression(nn.Module):
    """An engine whose latent is the LR image itself: one network to HR images, nothing drawn.

    Args:
        task: settings, with an ``edsr`` rival.
        network: from LR to HR.
    """

    def __init__(self, task: Task, network: EDSR) -> None:
        super().__init__()
        self.task = task
        self.network = network

    spread_of_draws = None  # it has no draws

    def upsample(self, lr: Image) -> Image:
        """The image as it is: its network enlarges."""
        return lr

    def encode(self, image: Image) -> Image:
        """The image as it is."""
        return image

    def draw(self, lr: Image, z_lr: Image, noises: Sequence[Noise], **_where: Any) -> Drawn:
        """The LR image for each noise; nothing is refined.

        Args:
            lr: (b, 1, h, w) in [-1, 1], even sides.
            z_lr: the same.
            noises: one per draw, not heeded.
        """
        b, _, height, width = lr.shape
        nowhere = torch.zeros(b, height // 2, width // 2, dtype=torch.bool, device=lr.device)
        return Drawn([z_lr] * len(noises), nowhere, Cost())

    @torch.no_grad()
    def show(self, latents: Sequence[Image], lr: Image, **_mean: Any) -> tuple[Image, Image | None]:
        """Super-resolve LR images; draws do not differ.

        Args:
            latents: of the draws.
            lr: (b, 1, h, w) in [-1, 1].
        """
        sr = self.network(lr).float().clamp(-1, 1)
        return sr, torch.zeros_like(sr) if len(latents) > 1 else None


def build_edsr(task: Task) -> EDSR:
    """The task's regression network with fresh weights."""
    assert isinstance(task.rival, EDSRSection)
    return EDSR(width=task.rival.width, blocks=task.rival.blocks, upscale=task.upscale)


def build_unet(task: Task) -> LatentUNet:
    """The task's U-Net with fresh weights."""
    assert isinstance(task.rival, ResShiftSection)
    return LatentUNet(
        latent_channels=task.autoencoder.latent_channels,
        condition_channels=task.autoencoder.image_channels,
        **task.rival.model_dump(exclude={"network"}),
    )


def resshift_engine(task: Task, autoencoder: Autoencoder, unet: LatentUNet) -> Engine:
    """An engine with the U-Net in the transformer's place.

    Args:
        task: settings, with a ``resshift`` rival.
        autoencoder: as for a QDM.
        unet: the denoiser.

    Raises:
        MedQDMError: a sampler for which regions would have to differ.
    """
    if task.diffusion.sampler.name != "uniform":
        raise MedQDMError(
            f"diffusion.sampler.name: must be uniform for a ResShift rival, which has no regions, "
            f"got {task.diffusion.sampler.name}; leave it out"
        )
    return Engine(task, autoencoder, unet)  # type: ignore[arg-type]  # has QDM's interface


def save(path: Path, network: nn.Module, *, task: Task, record: Mapping[str, Any]) -> None:
    """Write a rival's weights file; it appears whole or not at all.

    Args:
        path: where to.
        network: an ``EDSR``, or the engine of a ResShift rival.
        task: with the rival.
        record: how it was trained: any JSON.

    Raises:
        MedQDMError: a weight is not finite or does not fit into float16.
    """
    networks: dict[str, tuple[checkpoint.Build, checkpoint.State]]
    if isinstance(network, Engine):
        networks = {
            "autoencoder": (build_autoencoder, network.autoencoder.state_dict()),
            "unet": (build_unet, network.qdm.state_dict()),
        }
    else:
        networks = {"edsr": (build_edsr, network.state_dict())}
    checkpoint.write_networks(path, networks, task=task, record=record, dtype="float16")


def open_any(weights: Path, overrides: Sequence[str] = ()) -> Opened:
    """The engine of a weights file, be it a rival's or a QDM's, for ``Enhancer``.

    Args:
        weights: a medqdm weights file.
        overrides: ``key=value`` settings of the task that the weights carry.

    Raises:
        MedQDMError: no such file, damaged, or weights or settings that do not fit.
    """
    stored = checkpoint.read_networks(weights)
    rival = stored.task.rival
    if rival is None:
        return open_engine(weights, overrides)
    task, where = override(stored.task, overrides), f"{weights.name}: {rival.network}"

    def state(name: str) -> dict[str, Tensor]:
        return stored.states.get(name, {})

    engine: nn.Module
    if isinstance(rival, EDSRSection):
        edsr = checkpoint.build_from(build_edsr, stored.task, state("edsr"), where=where)
        engine = Regression(task, edsr)
    else:
        autoencoder = checkpoint.build_from(
            build_autoencoder, stored.task, state("autoencoder"), where=where
        )
        unet = checkpoint.build_from(build_unet, stored.task, state("unet"), where=where)
        engine = resshift_engine(task, autoencoder, unet)
    engine.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Opened(engine.eval(), stored.record, stored.sha256)  # type: ignore[arg-type]
