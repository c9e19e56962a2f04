import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from medqdm.models import strips
from medqdm.models.autoencoder import KLAutoencoder


class PeakMemory(TorchDispatchMode):
    """Largest number of bytes alive at once in tensors that were made under it."""

    def __init__(self):
        super().__init__()
        self.alive = self.peak = 0
        self._seen = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self._add(tensor.untyped_storage())
        return out

    def _add(self, storage):
        key, size = storage._cdata, storage.nbytes()
        if key not in self._seen:
            self._seen.add(key)
            self.alive += size
            self.peak = max(self.peak, self.alive)
            weakref.finalize(storage, self._remove, key, size)

    def _remove(self, key, size):
        self._seen.discard(key)
        self.alive -= size


def make_autoencoder(*, mid_attention: bool = True, channels: tuple[int, ...] = (8, 16, 16)):
    torch.manual_seed(0)
    return KLAutoencoder(
        image_channels=1,
        latent_channels=3,
        channels=channels,
        num_res_blocks=2,
        norm_groups=8,
        mid_attention=mid_attention,
    ).eval()


@pytest.mark.parametrize("mid_attention", [True, False])
@pytest.mark.parametrize("b", [1, 3])
@pytest.mark.parametrize("strip_elements", [1, 5000, None])
@torch.inference_mode()
def test_equals_the_whole(mid_attention, b, strip_elements):
    network = make_autoencoder(mid_attention=mid_attention)
    z = torch.randn(b, 3, 11, 14) + torch.arange(b)[:, None, None, None]
    torch.testing.assert_close(
        strips.decode(network, z, strip_elements), network.decode(z), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("channels", [(8,), (8, 8), (8, 8, 16, 16)])
@torch.inference_mode()
def test_any_number_of_levels(channels):
    network = make_autoencoder(channels=channels)
    z = torch.randn(1, 3, 6, 4)
    torch.testing.assert_close(strips.decode(network, z, 1), network.decode(z), atol=1e-5, rtol=0)


@torch.inference_mode()
def test_statistics_survive_a_large_mean():
    network = make_autoencoder()
    with torch.no_grad():
        network.decoder[0].conv.bias += 100
    z = torch.randn(1, 3, 32, 32)
    exact = make_autoencoder().double()
    exact.load_state_dict(network.state_dict())
    error = (strips.decode(network, z, 1000) - exact.decode(z.double())).abs().mean()
    assert error < 1e-3 * exact.decode(z.double()).abs().mean()


@torch.inference_mode()
def test_no_seam_in_a_smooth_image():
    network = make_autoencoder(mid_attention=False)
    ramp = torch.linspace(-1, 1, 32)
    z = (ramp[:, None] + ramp).expand(1, 3, 32, 32)
    image = strips.decode(network, z, 16 * 128 * 8)  # strips of 16 rows at the last level
    jumps = image.diff(dim=2).diff(dim=2).abs().mean(dim=(0, 1, 3))  # 0 on a plane
    expected = network.decode(z).diff(dim=2).diff(dim=2).abs().mean(dim=(0, 1, 3))
    borders = torch.arange(16, 128, 16) - 1
    torch.testing.assert_close(jumps[borders], expected[borders], atol=1e-5, rtol=1e-3)


@torch.inference_mode()
def test_bf16_stays_close():
    network = make_autoencoder()
    z = torch.randn(2, 3, 16, 16)
    expected = network.decode(z)
    with torch.autocast("cpu", torch.bfloat16):
        rough, whole = strips.decode(network, z, 2000), network.decode(z)
    error = (rough.float() - expected).abs().mean()
    assert 0 < error < 1.2 * (whole.float() - expected).abs().mean()


@torch.inference_mode()
def test_memory_is_input_inner_and_output_map():
    network = make_autoencoder(mid_attention=False, channels=(16, 32))
    z = torch.randn(1, 3, 256, 8)
    with PeakMemory() as lean:
        strips.decode(network, z, 16384)
    with PeakMemory() as whole:
        network.decode(z)
    one_map = 4 * 512 * 16  # bytes of a channel in float32
    assert lean.peak < 1.1 * (32 + 16 + 16) * one_map
    assert whole.peak > 1.4 * lean.peak
