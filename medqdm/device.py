"""Device: where networks run, and in which precision."""

import torch

from medqdm.config import Precision
from medqdm.errors import MedQDMError


def choose_device(name: str) -> torch.device:
    """``auto`` (CUDA if there is one, else CPU), ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        MedQDMError: no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, number = name.partition(":")
    if kind not in {"cpu", "cuda"} or (number and not number.isdigit()):
        raise MedQDMError(f"--device: must be auto, cpu, cuda or cuda:N, got {name!r}")
    if kind == "cuda" and int(number or 0) >= torch.cuda.device_count():
        raise MedQDMError(
            f"--device {name}: must be a CUDA device of this machine, "
            f"got {torch.cuda.device_count()} devices; use --device cpu"
        )
    return torch.device(name)


def is_bf16_fast(device: torch.device) -> bool:
    """Whether the device multiplies bf16 in hardware (CUDA from Ampere on; AVX-512 BF16; AMX)."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        capabilities = torch.cpu.get_capabilities()
        return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    return False


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """The autocast context of a precision; ``auto`` is bf16 where the device has it."""
    enabled = precision == "bf16" or (precision == "auto" and is_bf16_fast(device))
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)
