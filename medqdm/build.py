"""Build: the networks of a task with fresh weights."""

from medqdm.config import Task
from medqdm.models.autoencoder import KLAutoencoder
from medqdm.models.corrector import CorrectorSize
from medqdm.models.light import LightAutoencoder
from medqdm.models.regions import RegionHeads
from medqdm.models.spread import Spread
from medqdm.models.streams import SIZES, Size
from medqdm.models.transformer import QDM

Autoencoder = KLAutoencoder | LightAutoencoder


def build_autoencoder(task: Task) -> Autoencoder:
    """The task's autoencoder with fresh weights."""
    section = task.autoencoder
    if section.light is not None:
        return LightAutoencoder(
            image_channels=section.image_channels,
            latent_channels=section.latent_channels,
            upscale=task.upscale,
            **section.light.model_dump(),
        )
    return KLAutoencoder(
        image_channels=section.image_channels,
        latent_channels=section.latent_channels,
        channels=section.channels,
        num_res_blocks=section.num_res_blocks,
        norm_groups=section.norm_groups,
        mid_attention=section.mid_attention,
    )


def size_of(task: Task) -> Size:
    """Size of the task's transformer: a row of the table, or the task's own."""
    section = task.transformer
    if section.depth and section.hidden_size and section.num_heads:  # all three or none
        return Size(section.depth, section.hidden_size, section.num_heads)
    return SIZES[section.size]


def build_qdm(task: Task) -> QDM:
    """The task's transformer with fresh weights.

    Raises:
        MedQDMError: custom sizes do not divide.
    """
    corrector = task.transformer.corrector
    return QDM(
        latent_size=task.latent_size,
        latent_channels=task.autoencoder.latent_channels,
        condition_channels=task.autoencoder.image_channels,
        mask_input=task.transformer.mask_input,
        corrector=CorrectorSize(corrector.channels, corrector.blocks) if corrector else None,
        **size_of(task)._asdict(),
    )


def build_regions(task: Task) -> RegionHeads:
    """The task's networks for regions with fresh weights."""
    return RegionHeads(latent_channels=task.autoencoder.latent_channels)


def build_spread(task: Task) -> Spread:
    """The task's networks for the spread of draws with fresh weights."""
    return Spread(
        latent_channels=task.autoencoder.latent_channels,
        compression=task.autoencoder.compression,
        num_steps=task.diffusion.num_steps,
    )
