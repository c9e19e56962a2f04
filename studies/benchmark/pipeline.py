"""Pipeline: one way to compute, from a DICOM series to a DICOM series, its stages timed."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medqdm import io
from medqdm.build import Autoencoder, build_autoencoder
from medqdm.config import AutoencoderSection, Task, override
from medqdm.device import autocast
from medqdm.engine import Engine
from medqdm.errors import MedQDMError
from medqdm.models.autoencoder import KLAutoencoder
from medqdm.models.windows import PATCH, WindowIndex
from medqdm.version import __version__
from medqdm.volume import Volume
from studies.benchmark.measure import Stopwatch
from studies.benchmark.subject import Subject, every_region, lr_batch, noise_like

Precision = Literal["fp32", "bf16"]


class Variant(NamedTuple):
    """One way to compute.

    Args:
        packing: tokens that exist downstream: ``dense`` all, ``windows`` those of windows with a
            refined one, ``tokens`` refined ones alone.
        precision: of the networks.
        steps: of the sampler.
        autoencoder: ``task``'s own, or the ``paper``'s KL-VAE in its place, with random weights and
            decoded in one piece.
    """

    packing: Literal["dense", "windows", "tokens"]
    precision: Precision
    steps: int
    autoencoder: Literal["task", "paper"] = "task"

    @property
    def name(self) -> str:
        """What tables and plots call it."""
        steps = "1 step" if self.steps == 1 else f"{self.steps} steps"
        paper = "KL-VAE " if self.autoencoder == "paper" else ""
        return f"{paper}{self.packing} {self.precision}, {steps}"


@dataclass(frozen=True, eq=False)
class Outcome:
    """One run of a variant.

    Args:
        seconds: stage to time, for the whole batch.
        hu: ``(n, y, x)`` output.
        index: the tokens that ran.
        z_0: latents, (n, c, h, w), on the CPU.
    """

    seconds: dict[str, float]
    hu: NDArray[np.float32]
    index: WindowIndex
    z_0: Tensor


class Pipeline:
    """A variant, ready to run.

    Args:
        subject: model and slices.
        variant: which.
    """

    def __init__(self, subject: Subject, variant: Variant) -> None:
        settings = every_region(variant.steps)
        if variant.packing != "dense":
            settings.append(f"transformer.packing={variant.packing}")
        enhancer = subject.enhancer
        self.task = override(enhancer.task, settings)
        self.device = enhancer.device
        self.variant = variant
        shared = enhancer.engine
        autoencoder = shared.autoencoder
        if variant.autoencoder == "paper":
            self.task, autoencoder = paper_autoencoder(self.task)
        self.engine = Engine(self.task, autoencoder, shared.qdm).to(self.device).eval()

    @torch.no_grad()
    def run(self, folder: Path) -> Outcome:
        """From the DICOM series in ``folder/lr`` to one that is written and removed again."""
        watch, engine = Stopwatch(self.device), self.engine
        with watch.lap("read"):
            volume = io.read(folder / "lr")
            lr = lr_batch(np.asarray(volume.hu), engine)
        with autocast(self.device, self.variant.precision):
            with watch.lap("encode"):
                z_lr = engine.encode(engine.upsample(lr))
                tree = engine.quadtree(lr)
                index = engine.index(tree, z_lr)
                if self.variant.packing == "dense":
                    index = dense_index(tree.at(z_lr.shape[2] // PATCH, z_lr.shape[3] // PATCH))
            with watch.lap("denoise"):
                z_0 = engine.denoise(lr, z_lr, index, noise_like(z_lr))
            with watch.lap("decode"):
                if self.variant.autoencoder == "paper":
                    assert isinstance(engine.autoencoder, KLAutoencoder)
                    sr = engine.autoencoder.decode(z_0)[:, 0].cpu().numpy()
                else:
                    sr = engine.decode(z_0, lr)[:, 0].cpu().numpy()
        with watch.lap("write"):
            hu = self.task.hu_window.denormalize(sr)
            write_slices(volume, hu, folder / "sr", upscale=self.task.upscale)
        shutil.rmtree(folder / "sr")
        return Outcome(watch.seconds, hu, index, z_0.float().cpu())


def paper_autoencoder(task: Task) -> tuple[Task, Autoencoder]:
    """The task with the paper's KL-VAE, and that with random weights.

    Raises:
        MedQDMError: the task's latents are not those of the KL-VAE.
    """
    mine = task.autoencoder
    paper = AutoencoderSection(
        latent_channels=mine.latent_channels, image_channels=mine.image_channels, latent_scale=1.0
    )
    if mine.compression != paper.compression:
        raise MedQDMError(
            f"--paper-autoencoder: the task's latents must be of {paper.compression} pixels a "
            f"side as the KL-VAE's, got {mine.compression}; leave it out"
        )
    task = task.model_copy(update={"autoencoder": paper})
    network = build_autoencoder(task)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return task, network


def dense_index(refined: Tensor) -> WindowIndex:
    """All tokens exist, while noise and the downstream's output stay where it is refined."""
    rows, columns = refined.shape[1:]
    size = (len(refined), rows * PATCH, columns * PATCH)
    index = WindowIndex.everywhere(size, refined.device)
    index.refined = WindowIndex(refined).refined
    return index


def refined_difference(one: Outcome, other: Outcome) -> float:
    """The largest difference of their latents where the first one is refined."""
    refined = one.index.refined.cpu().expand_as(one.z_0)
    difference = (one.z_0 - other.z_0).abs()[refined]
    return float(difference.max()) if len(difference) else 0.0


def write_slices(volume: Volume, hu: NDArray[np.float32], folder: Path, *, upscale: int) -> None:
    """Write a DICOM series.

    Args:
        volume: whose geometry it has, before ``upscale``.
        hu: ``(z, y, x)`` in HU.
        folder: where to.
        upscale: output pixels per pixel of the volume.
    """
    io.write_series(
        volume,
        iter(hu),
        folder,
        upscale=upscale,
        description="Benchmark.",
        software_version=__version__,
        weights_id="benchmark",
        uid_entropy=["benchmark"],
    )
