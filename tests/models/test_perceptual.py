"""LPIPS with random weights: the sums, the files it comes from, the refusals."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch
from torch import Tensor
from torch.nn import functional

from medqdm.errors import MedQDMError
from medqdm.models.perceptual import (
    WEIGHTS_VARIABLE,
    PerceptualDistance,
    load_perceptual,
    rename_lpips,
)

WIDTHS = [64, 64, 128, 128, *[256] * 3, *[512] * 6]
NUMBERS = [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28]  # torchvision's, ReLU and pool counted
STAGE_ENDS = [2, 7, 14, 21, 28]


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    """Random weights of VGG-16's layout; 59 MB."""
    generator = torch.Generator().manual_seed(0)
    made, channels = {}, 3
    for number, width in zip(NUMBERS, WIDTHS, strict=True):
        weight = torch.randn(width, channels, 3, 3, generator=generator)
        made[f"features.{number}.weight"] = weight * (2 / (9 * channels)) ** 0.5
        made[f"features.{number}.bias"] = 0.1 * torch.randn(width, generator=generator)
        channels = width
    for k, width in enumerate((64, 128, 256, 512, 512)):
        made[f"lin{k}.model.1.weight"] = torch.rand(1, width, 1, 1, generator=generator)
    return made


@pytest.fixture(scope="module")
def distance(state: dict[str, Tensor]) -> PerceptualDistance:
    return PerceptualDistance(state)


def make_images(count: int = 2) -> Tensor:
    """Discs of different size in air, in [-1, 1]."""
    y, x = torch.meshgrid(torch.arange(32) - 15.5, torch.arange(32) - 15.5, indexing="ij")
    radii = torch.arange(count)[:, None, None, None] * 3 + 7
    return torch.where((y**2 + x**2).sqrt() < radii, 0.5, -0.9)


def test_equal_images_have_distance_0(distance: PerceptualDistance) -> None:
    assert distance(make_images(), make_images()).tolist() == [0, 0]


def test_it_is_symmetric_and_image_by_image(distance: PerceptualDistance) -> None:
    a, b = make_images(), make_images().flip(0)
    both = distance(a, b)
    assert both.shape == (2,)
    torch.testing.assert_close(both, distance(b, a))
    torch.testing.assert_close(both[1:], distance(a[1:], b[1:]))


def test_it_grows_with_noise_and_blur(distance: PerceptualDistance) -> None:
    image = make_images(1)
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(0))
    noisy = [distance(image + sd * noise, image).item() for sd in (0.01, 0.05, 0.2)]
    blurred = [
        distance(functional.avg_pool2d(image, k, 1, k // 2, count_include_pad=False), image).item()
        for k in (3, 5, 9)
    ]
    for values in (noisy, blurred):
        assert 0 < values[0] < values[1] < values[2]


def slow_distance(state: dict[str, Tensor], a: Tensor, b: Tensor) -> float:
    """LPIPS by its formula, pixel by pixel, for two images of (h, w)."""
    shift = torch.tensor([-0.030, -0.088, -0.188])[:, None, None]
    scale = torch.tensor([0.458, 0.448, 0.450])[:, None, None]
    x, y = ((image.expand(3, -1, -1) - shift) / scale for image in (a, b))
    total, k = 0.0, 0
    for number in NUMBERS:
        kernel, bias = state[f"features.{number}.weight"], state[f"features.{number}.bias"]
        x, y = (functional.conv2d(v, kernel, bias, padding=1).clamp_min(0) for v in (x, y))
        if number in STAGE_ENDS:
            weight = state[f"lin{k}.model.1.weight"].flatten()
            height, width = x.shape[1:]
            for i in range(height):
                for j in range(width):
                    p, q = x[:, i, j], y[:, i, j]
                    gap = (p / (p.norm() + 1e-10) - q / (q.norm() + 1e-10)) ** 2
                    total += float((weight * gap).sum()) / (height * width)
            k += 1
            if k < len(STAGE_ENDS):
                x, y = (functional.max_pool2d(v, 2) for v in (x, y))
    return total


def test_it_equals_the_formula(distance: PerceptualDistance, state: dict[str, Tensor]) -> None:
    a, b = make_images()[..., 8:24, 8:24]
    assert distance(a[None], b[None]).item() == pytest.approx(
        slow_distance(state, a[0], b[0]), rel=1e-4
    )


def test_the_gradient_is_finite_where_all_features_are_0(state: dict[str, Tensor]) -> None:
    dark = {**state, "features.28.bias": torch.full((512,), -1e3)}
    image = make_images().requires_grad_()
    PerceptualDistance(dark)(image, make_images().flip(0)).sum().backward()
    assert image.grad is not None
    assert image.grad.isfinite().all()
    assert image.grad.abs().max() > 0


def test_it_is_frozen(distance: PerceptualDistance) -> None:
    assert not any(p.requires_grad for p in distance.parameters())
    assert not distance.training


def as_lpips(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The names that the lpips package gives the same weights."""
    slices = {n: 1 + sum(n > end for end in STAGE_ENDS) for n in NUMBERS}
    named = {
        re.sub(r"features\.(\d+)", lambda m: f"net.slice{slices[int(m[1])]}.{m[1]}", name): value
        for name, value in state.items()
    }
    return {**named, "scaling_layer.shift": torch.zeros(1, 3, 1, 1)}


@pytest.fixture
def no_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(WEIGHTS_VARIABLE, raising=False)
    monkeypatch.setitem(sys.modules, "lpips", None)


def test_weights_come_from_files(
    state: dict[str, Tensor],
    distance: PerceptualDistance,
    tmp_path: Path,
    no_extra: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wanted = distance(make_images(), make_images().flip(0))
    half = {name: value.half() for name, value in state.items()}  # 30 MB a file
    torch.save(half, tmp_path / "lpips.pth")
    safetensors.torch.save_file(as_lpips(half), tmp_path / "lpips.safetensors")
    given = load_perceptual(tmp_path / "lpips.pth")
    monkeypatch.setenv(WEIGHTS_VARIABLE, str(tmp_path / "lpips.safetensors"))
    for loaded in (given, load_perceptual()):
        found = loaded(make_images(), make_images().flip(0))
        torch.testing.assert_close(found, wanted, rtol=0.01, atol=0)


def test_weights_come_from_the_extra(
    state: dict[str, Tensor], no_extra: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    class LPIPS:
        def __init__(self, net: str, verbose: bool) -> None:
            assert (net, verbose) == ("vgg", False)

        def state_dict(self) -> dict[str, Tensor]:
            return as_lpips(state)

    monkeypatch.setitem(sys.modules, "lpips", SimpleNamespace(LPIPS=LPIPS))
    loaded = load_perceptual().features.state_dict()
    assert torch.equal(loaded["28.weight"], state["features.28.weight"])


def test_lpips_names_become_torchvision_s(state: dict[str, Tensor]) -> None:
    assert rename_lpips(as_lpips(state)).keys() == {*state, "scaling_layer.shift"}


def test_without_weights_the_extra_is_named(no_extra: None) -> None:
    with pytest.raises(MedQDMError, match=r"pip install 'medqdm\[perceptual\]'"):
        load_perceptual()


def test_a_missing_file_is_refused(tmp_path: Path, no_extra: None) -> None:
    with pytest.raises(MedQDMError, match="LPIPS weights must be a file, got none"):
        load_perceptual(tmp_path / "none.pth")


@pytest.mark.parametrize("name", ["bad.pth", "bad.safetensors"])
def test_a_damaged_file_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"not weights")
    with pytest.raises(MedQDMError, match="must be a file of weights, got an error"):
        load_perceptual(tmp_path / name)


def test_code_in_a_file_is_not_run(tmp_path: Path) -> None:
    torch.save({"features.0.weight": SimpleNamespace()}, tmp_path / "code.pth")
    with pytest.raises(MedQDMError, match="must be a file of weights, got an error"):
        load_perceptual(tmp_path / "code.pth")


def test_weights_of_another_shape_or_missing_are_refused(state: dict[str, Tensor]) -> None:
    with pytest.raises(MedQDMError, match=r"features.5.weight must have shape \(128, 64, 3, 3\)"):
        PerceptualDistance({**state, "features.5.weight": torch.zeros(128, 64, 1, 1)})
    missing = {name: value for name, value in state.items() if name != "lin3.model.1.weight"}
    with pytest.raises(MedQDMError, match=r"lin3.model.1.weight must have shape .* got none"):
        PerceptualDistance(missing)
