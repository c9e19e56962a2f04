"""Strips: the KL-VAE's decoder a few rows at a time, with less memory and the same result."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from monai.networks.blocks import UpSample
from monai.networks.nets.autoencoderkl import AEKLResBlock
from torch import Tensor, nn
from torch.nn import functional

from medqdm.models.autoencoder import KLAutoencoder, MidAttention

STRIP_ELEMENTS = {"cpu": 2**20, "cuda": 2**27}  # that stay in the cache; that fill the device
Before = Callable[[Tensor], Tensor]  # what is done to a strip before its convolution


@torch.no_grad()
def decode(
    autoencoder: KLAutoencoder, z: Float[Tensor, "b c h w"], strip_elements: int | None = None
) -> Float[Tensor, "b k height width"]:
    """What ``autoencoder.decode`` gives, to rounding.

    Normalised and activated feature maps exist as strips only, each with its neighbouring rows, so
    that no seam can appear; GroupNorm statistics are those of the whole map. What is held is a
    residual block's input and inner map, and its output where that has other channels.

    Args:
        autoencoder: the KL-VAE; for inference only.
        z: unscaled latent of any size.
        strip_elements: size of a strip in elements; None: the device's.
    """
    return _run(autoencoder.decoder, autoencoder.post_quant(z), strip_elements)


def _run(network: nn.Sequential, x: Tensor, strip_elements: int | None) -> Tensor:
    size = strip_elements or STRIP_ELEMENTS[x.device.type]
    before: Before = _nothing
    for layer in network:
        if isinstance(layer, AEKLResBlock):
            x = _residual(x, layer, size)
        elif isinstance(layer, UpSample):
            x = _upsample(x, layer.postconv.conv, size)
        elif isinstance(layer, MidAttention):
            x = layer(x)
        elif isinstance(layer, nn.GroupNorm):
            before = _norm_silu(x, layer, size)  # a SiLU and a convolution follow
        elif not isinstance(layer, nn.SiLU):
            conv: nn.Conv2d = layer.conv  # type: ignore[assignment]
            x = _convolve(x, conv, before, size)
    return x


def _nothing(strip: Tensor) -> Tensor:
    return strip


def _assemble(height: int, rows: int, make: Callable[[int, int], Tensor]) -> Tensor:
    """A map of ``height`` rows from strips: make(start, stop)."""
    whole = None
    for start in range(0, height, rows):
        stop = min(start + rows, height)
        strip = make(start, stop)
        if whole is None:
            b, c, _, w = strip.shape
            whole = torch.empty(
                (b, c, height, w),
                dtype=strip.dtype,
                device=strip.device,
                memory_format=torch.channels_last,
            )
        whole[:, :, start:stop] = strip
    assert whole is not None  # maps have rows
    return whole


def _strip_rows(x: Tensor, size: int) -> int:
    """Rows of a strip: an even number, so that upsampling can halve it."""
    return max(2, size * x.shape[2] // x[0].numel() // 2 * 2)


def _with_neighbours(x: Tensor, start: int, stop: int, before: Before) -> Tensor:
    """Rows start - 1 to stop, prepared; zeros outside the map, as a convolution pads."""
    strip = before(x[:, :, max(start - 1, 0) : stop + 1])
    return functional.pad(strip, (0, 0, int(start == 0), int(stop == x.shape[2])))


def _conv(rows: Tensor, conv: nn.Conv2d) -> Tensor:
    return functional.conv2d(rows, conv.weight, conv.bias, padding=(0, 1))


def _convolve(x: Tensor, conv: nn.Conv2d, before: Before, size: int) -> Tensor:
    return _assemble(
        x.shape[2],
        _strip_rows(x, size),
        lambda a, b: _conv(_with_neighbours(x, a, b, before), conv),
    )


def _residual(x: Tensor, block: AEKLResBlock, size: int) -> Tensor:
    h = _convolve(x, block.conv1.conv, _norm_silu(x, block.norm1, size), size)
    before = _norm_silu(h, block.norm2, size)

    def change(start: int, stop: int) -> Tensor:
        return _conv(_with_neighbours(h, start, stop, before), block.conv2.conv)

    rows = _strip_rows(x, size)
    if isinstance(block.nin_shortcut, nn.Identity):
        for start in range(0, x.shape[2], rows):  # in place: nobody else holds x
            stop = min(start + rows, x.shape[2])
            x[:, :, start:stop] += change(start, stop)
        return x
    return _assemble(x.shape[2], rows, lambda a, b: block.nin_shortcut(x[:, :, a:b]) + change(a, b))


def _upsample(x: Tensor, conv: nn.Conv2d, size: int) -> Tensor:
    def make(start: int, stop: int) -> Tensor:
        coarse = _with_neighbours(x, start // 2, stop // 2, _nothing)
        fine = functional.interpolate(coarse, scale_factor=2.0, mode="nearest")
        return _conv(fine[:, :, 1:-1], conv)

    return _assemble(2 * x.shape[2], _strip_rows(x, size), make)


def _norm_silu(x: Tensor, norm: nn.GroupNorm, size: int) -> Before:
    """GroupNorm with the statistics of the whole map, then SiLU, for any strip of it."""
    channels, groups, eps = norm.num_channels, norm.num_groups, norm.eps
    shares, means, variances = [], [], []
    for strip in torch.split(x, _strip_rows(x, size), dim=2):
        places = strip.shape[2] * strip.shape[3]
        # the one kernel that takes moments of bf16 without a slow copy in float32
        _, mean, inverse = torch.native_group_norm(
            strip.contiguous(memory_format=torch.channels_last),
            norm.weight,
            norm.bias,
            len(x),
            channels,
            places,
            groups,
            eps,
        )
        shares.append(strip.shape[2] / x.shape[2])
        means.append(mean)
        variances.append(inverse**-2 - eps)
    mean = _average(means, shares)
    apart = [v + (m - mean).square() for v, m in zip(variances, means, strict=True)]
    moments = [
        v.repeat_interleave(channels // groups, dim=1) for v in (mean, _average(apart, shares))
    ]

    def before(strip: Tensor) -> Tensor:
        images = [
            functional.batch_norm(image[None], m, v, norm.weight, norm.bias, eps=eps)
            for image, m, v in zip(strip, *moments, strict=True)
        ]
        return functional.silu(torch.cat(images) if len(images) > 1 else images[0], inplace=True)

    return before


def _average(values: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    return torch.stack([v * share for v, share in zip(values, shares, strict=True)]).sum(dim=0)
