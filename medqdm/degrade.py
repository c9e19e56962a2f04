"""Degradation: HR slices to LR by Real-ESRGAN's first stage, for one channel, seeded per sample.

Drawing the parameters is apart from applying them, so a fixed test set can write down what was
drawn. Blur and resizes are linear and keep a constant, so they act on [-1, 1] as they are; only
noise and JPEG are defined on [0, 1] = the whole window.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from monai.transforms import MapTransform, RandomizableTransform
from PIL import Image
from torch import Tensor
from torch.nn import functional

from medqdm.config import DegradationSection

ResizeMode = Literal["area", "bilinear", "bicubic"]
_LARGEST_SEED = 2**31 - 1
_CUT_OFF_RAD = (np.pi / 3, np.pi)
_SMALLEST_SIGMA_PX = 1e-3  # a range may start at 0: the kernel is a single 1 there


@dataclass(frozen=True)
class DegradationParams:
    """Everything that was drawn for one sample; with the HR slice it gives the LR slice.

    Args:
        kernel: kind of blur kernel.
        kernel_px: its side in HR pixels, odd; 0 for none.
        sigma_px: standard deviations of a Gaussian kernel along its own two axes, in HR pixels.
        rotation_rad: from the x axis to the kernel's first axis, in [-pi, pi].
        cut_off_rad: of the circular low-pass kernel, in radians per pixel.
        resize_scale: size after the random resize, over the HR size.
        resize_mode: of the random and of the final resize.
        noise: kind of noise.
        noise_strength: standard deviation of Gaussian noise, on [0, 1]; factor of Poisson noise.
        noise_seed: of the noise itself.
        jpeg_quality: 1 to 100; 0 for none.
        round_to_8_bit: whether the result is rounded to 256 levels.
    """

    kernel: Literal["none", "sinc", "isotropic", "anisotropic"] = "none"
    kernel_px: int = 0
    sigma_px: tuple[float, float] = (0.0, 0.0)
    rotation_rad: float = 0.0
    cut_off_rad: float = 0.0
    resize_scale: float = 1.0
    resize_mode: ResizeMode = "area"
    noise: Literal["none", "gaussian", "poisson"] = "none"
    noise_strength: float = 0.0
    noise_seed: int = 0
    jpeg_quality: int = 0
    round_to_8_bit: bool = False


def draw(section: DegradationSection, random_state: np.random.RandomState) -> DegradationParams:
    """Draw the degradation of one sample.

    Args:
        section: the ranges to draw from.
        random_state: the source of chance; it moves on.
    """
    return DegradationParams(
        **_draw_kernel(section, random_state),
        resize_scale=_draw_scale(section, random_state),
        resize_mode=section.resize_modes[random_state.randint(len(section.resize_modes))],
        **_draw_noise(section, random_state),
        jpeg_quality=int(
            random_state.randint(section.jpeg_quality[0], section.jpeg_quality[1] + 1)
        ),
        round_to_8_bit=section.round_to_8_bit,
    )


def _draw_kernel(
    section: DegradationSection, random_state: np.random.RandomState
) -> dict[str, Any]:
    if not section.true_kernel_sizes:
        return {}
    side = section.true_kernel_sizes[random_state.randint(len(section.true_kernel_sizes))]
    if random_state.uniform() < section.sinc_probability:
        cut_off = float(random_state.uniform(*_CUT_OFF_RAD))
        return {"kernel": "sinc", "kernel_px": side, "cut_off_rad": cut_off}
    sigma = float(random_state.uniform(*section.blur_sigma_px))
    if random_state.uniform() < section.isotropic_probability:
        return {"kernel": "isotropic", "kernel_px": side, "sigma_px": (sigma, sigma)}
    return {
        "kernel": "anisotropic",
        "kernel_px": side,
        "sigma_px": (sigma, float(random_state.uniform(*section.blur_sigma_px))),
        "rotation_rad": float(random_state.uniform(-np.pi, np.pi)),
    }


def _draw_scale(section: DegradationSection, random_state: np.random.RandomState) -> float:
    up, down, _ = section.resize_probabilities
    smallest, largest = section.resize_range
    choice = random_state.uniform()
    if choice < up:
        return float(random_state.uniform(1, largest))
    if choice < up + down:
        return float(random_state.uniform(smallest, 1))
    return 1.0


def _draw_noise(section: DegradationSection, random_state: np.random.RandomState) -> dict[str, Any]:
    is_gaussian = random_state.uniform() < section.gaussian_probability
    strength = random_state.uniform(
        *(section.gaussian_sigma if is_gaussian else section.poisson_scale)
    )
    seed = int(random_state.randint(_LARGEST_SEED))
    if strength == 0:
        return {}
    kind = "gaussian" if is_gaussian else "poisson"
    return {"noise": kind, "noise_strength": float(strength), "noise_seed": seed}


def degrade(
    hr: Float[Tensor, "1 h w"], params: DegradationParams, upscale: int
) -> Float[Tensor, "1 h_lr w_lr"]:
    """Apply a drawn degradation; the same arguments give the same bits.

    Every resize keeps the outer edges of the slice where they are.

    Args:
        hr: the slice in [-1, 1], its sides multiples of ``upscale``.
        params: what ``draw`` gave.
        upscale: HR pixels per LR pixel along an axis.

    Returns:
        The LR slice, clamped to [-1, 1].
    """
    height, width = hr.shape[-2:]
    image = hr[None]
    if params.kernel != "none":
        image = _blur(image, kernel(params))
    between = round(height * params.resize_scale), round(width * params.resize_scale)
    image = _resize(image, between, params.resize_mode)
    if params.noise != "none":
        image = _add_noise(image, params)
    if params.jpeg_quality:
        image = _jpeg(image, params.jpeg_quality)
    image = _resize(image, (height // upscale, width // upscale), params.resize_mode).clamp(-1, 1)
    if params.round_to_8_bit:
        image = _from_unit((_to_unit(image) * 255).round() / 255)
    return image[0]


def kernel(params: DegradationParams) -> Float[Tensor, "k k"]:
    """The blur kernel, which sums to 1; the true one, as zeros around it would change nothing."""
    axis = torch.arange(params.kernel_px, dtype=torch.float64) - params.kernel_px // 2
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    weights = _low_pass(x, y, params) if params.kernel == "sinc" else _gaussian(x, y, params)
    return (weights / weights.sum()).float()


def _gaussian(x: Tensor, y: Tensor, params: DegradationParams) -> Tensor:
    cos, sin = np.cos(params.rotation_rad), np.sin(params.rotation_rad)
    first, second = (max(sigma, _SMALLEST_SIGMA_PX) for sigma in params.sigma_px)
    along, across = cos * x + sin * y, cos * y - sin * x
    return torch.exp(-((along / first) ** 2 + (across / second) ** 2) / 2)


def _low_pass(x: Tensor, y: Tensor, params: DegradationParams) -> Tensor:
    # Inverse Fourier transform of a disc of radius w: w J1(w r) / (2 pi r), w^2 / (4 pi) at r = 0.
    w, radius = params.cut_off_rad, torch.hypot(x, y)
    ripple = w * torch.special.bessel_j1(w * radius) / (2 * np.pi * radius.clamp(min=1e-9))
    return torch.where(radius == 0, w * w / (4 * np.pi), ripple)


def _blur(image: Tensor, weights: Tensor) -> Tensor:
    reach = len(weights) // 2
    padded = functional.pad(image, (reach, reach, reach, reach), mode="reflect")
    return functional.conv2d(padded, weights[None, None])


def _resize(image: Tensor, size: tuple[int, int], mode: ResizeMode) -> Tensor:
    if image.shape[-2:] == size:
        return image
    return functional.interpolate(
        image, size=size, mode=mode, align_corners=None if mode == "area" else False
    )


def _to_unit(image: Tensor) -> Tensor:
    return (image.clamp(-1, 1) + 1) / 2


def _from_unit(image: Tensor) -> Tensor:
    return image * 2 - 1


def _add_noise(image: Tensor, params: DegradationParams) -> Tensor:
    generator = np.random.default_rng(params.noise_seed)
    if params.noise == "gaussian":
        noise = generator.standard_normal(tuple(image.shape), dtype=np.float32)
    else:
        noise = _shot_noise(image.numpy(), generator)
    return (image + torch.from_numpy(noise) * (2 * params.noise_strength)).clamp(-1, 1)


def _shot_noise(
    image: np.ndarray[Any, np.dtype[np.float32]], generator: np.random.Generator
) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Counts minus their expectation, on [0, 1], for a full scale of ``2^n`` counts.

    ``2^n`` is the number of grey levels (of 256) that occur, raised to a power of two.
    """
    levels = np.rint((image.clip(-1, 1) + 1) * 127.5).astype(np.uint8)
    used = np.count_nonzero(np.bincount(levels.reshape(-1), minlength=256))
    counts = 2.0 ** np.ceil(np.log2(used))
    expected = np.arange(256) / 255 * counts
    noise = generator.poisson(expected[levels]) - expected[levels]
    return np.asarray(noise / counts, dtype=np.float32)


def _jpeg(image: Tensor, quality: int) -> Tensor:
    grey = (_to_unit(image[0, 0]) * 255).round().to(torch.uint8).numpy()
    stream = io.BytesIO()
    Image.fromarray(grey).save(stream, format="JPEG", quality=quality)
    decoded = torch.from_numpy(np.array(Image.open(stream), dtype=np.float32))
    return _from_unit(decoded / 255)[None, None]


class DegradeD(RandomizableTransform, MapTransform):
    """MONAI dict transform that adds the LR slice of an HR slice.

    Args:
        sections: the ranges to draw from, each with the share of samples that get it.
        upscale: HR pixels per LR pixel along an axis.
        keys: the HR slice, ``(1, h, w)`` in [-1, 1].
        output_key: where the LR slice goes, ``(1, h / upscale, w / upscale)`` in [-1, 1].

    >>> transform = DegradeD([(DegradationSection(), 1.0)], upscale=4).set_random_state(seed=1)
    >>> transform({"hr": torch.zeros(1, 32, 32)})["lr"].shape
    torch.Size([1, 8, 8])
    """

    def __init__(
        self,
        sections: Sequence[tuple[DegradationSection, float]],
        *,
        upscale: int,
        keys: str | Sequence[str] = "hr",
        output_key: str = "lr",
    ) -> None:
        RandomizableTransform.__init__(self, prob=1.0)
        MapTransform.__init__(self, keys)
        self.sections = sections
        self.upscale = upscale
        self.output_key = output_key
        self.params = DegradationParams()

    def randomize(self, data: Any = None) -> None:  # noqa: ARG002  (MONAI's signature)
        """Draw the parameters of the next sample into ``params``."""
        section = self.sections[0][0]
        if len(self.sections) > 1:
            shares = [share for _, share in self.sections]
            section = self.sections[self.R.choice(len(shares), p=shares)][0]
        self.params = draw(section, self.R)

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """The sample with its LR slice."""
        self.randomize()
        sample = dict(data)
        for key in self.key_iterator(sample):
            hr = torch.as_tensor(sample[key]).as_subclass(Tensor)
            sample[self.output_key] = degrade(hr, self.params, self.upscale)
        return sample
