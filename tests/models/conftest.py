"""What the tests of the networks share."""

import pytest
import torch

from medqdm.models.light import LightAutoencoder


@pytest.fixture
def make():
    """Makes a small light autoencoder whose zero-initialised parts have been woken up."""

    def build(upscale: int = 4, compression: int = 4) -> LightAutoencoder:
        torch.manual_seed(0)
        network = LightAutoencoder(
            image_channels=1,
            latent_channels=3,
            compression=compression,
            channels=8,
            encoder_blocks=1,
            decoder_blocks=2,
            upscale=upscale,
        )
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        return network.eval()

    return build
