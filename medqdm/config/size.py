"""Size: about how many weights a task's networks have, from its settings alone.

Convolutions and matrix products are counted, without biases and norms. The sum is within 10 % of
what is built, for a ResShift U-Net within a third.
"""

from medqdm.config.networks import (
    AutoencoderSection,
    EDSRSection,
    LightSection,
    ResShiftSection,
    RivalSection,
    TransformerSection,
)

LARGEST_NAMED = (12, 1024)  # depth and width of size L; the other named sizes are smaller
TAPS = 9  # of a 3 x 3 convolution


def count_weights(
    autoencoder: AutoencoderSection, transformer: TransformerSection, rival: RivalSection | None
) -> int:
    """Weights of the networks; named transformer sizes count as the largest of them.

    Args:
        autoencoder: between pixels and latents.
        transformer: with its corrector.
        rival: in the transformer's place.
    """
    if isinstance(rival, EDSRSection):
        return TAPS * rival.width * (rival.width * (2 * rival.blocks + 1) + 256)
    if autoencoder.light is not None:
        total = _light(autoencoder, autoencoder.light)
    else:
        total = _kl(autoencoder)
    if rival is not None:
        return total + _unet(rival)
    return total + _transformer(transformer, autoencoder)


def _light(section: AutoencoderSection, light: LightSection) -> int:
    width, latent, area = light.channels, section.latent_channels, light.compression**2
    ends = section.image_channels * area + 3 * latent + 16 * area
    return TAPS * width * (2 * width * (light.encoder_blocks + light.decoder_blocks) + ends)


def _kl(section: AutoencoderSection) -> int:
    channels, blocks = section.channels, section.num_res_blocks
    total = 2 * channels[-1] ** 2 * (4 * TAPS + 4 * section.mid_attention)
    for before, width in zip((channels[0], *channels), channels, strict=False):
        # the encoder's blocks, the decoder's with one more, one step down and one up
        total += TAPS * width**2 * (4 * blocks) + 2 * TAPS * width * before
        total += 2 * TAPS * width**2
    ends = 2 * section.image_channels * channels[0] + 3 * section.latent_channels * channels[-1]
    return total + TAPS * ends


def _transformer(section: TransformerSection, autoencoder: AutoencoderSection) -> int:
    depth, width = LARGEST_NAMED
    if section.depth and section.hidden_size:  # custom
        depth, width = section.depth, section.hidden_size
    latent = autoencoder.latent_channels
    seen = latent + autoencoder.image_channels + section.mask_input
    # a block: attention 4, MLP 8, modulation 6 times the square; three of them a layer
    total = width**2 * (54 * depth + 6) + width * (512 + (64 + 4) * (seen + latent))
    if section.corrector is not None:
        inner = section.corrector.channels
        total += inner**2 * (2 * TAPS + 2) * (section.corrector.blocks + 4)
        total += TAPS * inner * (seen + 2 * latent)
    return total


def _unet(section: ResShiftSection) -> int:
    total, blocks = 0, section.res_blocks
    for before, width in zip(
        (section.channels[0], *section.channels), section.channels, strict=False
    ):
        # down: two convolutions a block; up: one block more, which sees twice the channels
        total += TAPS * width * max(before, width) * (2 * blocks + 3 * (blocks + 1) + 2)
    return total + 4 * TAPS * section.channels[-1] ** 2
