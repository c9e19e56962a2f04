"""Measure: seconds per stage, peak memory, the machine's matrix rate, and the work counted."""

import ctypes
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import psutil
import torch
from torch import nn

from medqdm.models.corrector import Corrector
from medqdm.models.transformer import QDM
from medqdm.models.windows import PATCH, UPSTREAM_PATCH, WindowIndex

MATRIX_SIDE = {"cpu": 2048, "cuda": 8192}
MATRIX_PRODUCTS = {"cpu": 3, "cuda": 20}  # timed together
MEMORY_INTERVAL_S = 0.002


@dataclass
class Stopwatch:
    """Seconds by name; work that a GPU still has to do is waited for.

    Args:
        device: where the work runs.
    """

    device: torch.device
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def lap(self, name: str) -> Iterator[None]:
        """Add the block's wall time to a name."""
        synchronize(self.device)
        began = time.perf_counter()
        yield
        synchronize(self.device)
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has done all that was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class PeakMemory:
    """The most memory that a block held above what was held when it began.

    On a CPU the process's resident memory, looked at every 2 ms by another thread; on a GPU what
    its allocator counts.

    Args:
        device: where the work runs.

    Attributes:
        num_bytes: the peak, once the block has ended.
    """

    def __init__(self, device: torch.device) -> None:
        self.num_bytes = 0
        self._device = device
        self._process = psutil.Process()
        self._ended = threading.Event()

    def __enter__(self) -> "PeakMemory":
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            self._before = torch.cuda.memory_allocated(self._device)
            return self
        # what earlier blocks freed must not hide what this one takes (glibc alone keeps it)
        with suppress(OSError, AttributeError):
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        self._before = self._process.memory_info().rss
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._device.type == "cuda":
            self.num_bytes = torch.cuda.max_memory_allocated(self._device) - self._before
            return
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        is_last = False
        while not is_last:
            is_last = self._ended.wait(MEMORY_INTERVAL_S)
            held = self._process.memory_info().rss - self._before
            self.num_bytes = max(self.num_bytes, held)


def matrix_rate(device: torch.device, dtype: torch.dtype, *, side: int | None = None) -> float:
    """FLOP/s of square matrix products: what the device reaches when nothing else is in the way.

    Args:
        device: where.
        dtype: of the matrices.
        side: of the matrices; None: 2048 on a CPU, 8192 on a GPU.
    """
    side, count = side or MATRIX_SIDE[device.type], MATRIX_PRODUCTS[device.type]
    left, right = (torch.rand(side, side, device=device).to(dtype) for _ in range(2))
    watch = Stopwatch(device)
    for name in ("warm-up", "products"):
        with watch.lap(name):
            for _ in range(count):
                torch.mm(left, right)
    return 2 * side**3 * count / watch.seconds["products"]


def multiply_adds(qdm: QDM, index: WindowIndex, num_steps: int) -> int:
    """Multiply-adds of the transformer over all steps, in matrix products and attention.

    Per token of width H in each block: 4 H^2 for the projections of self-attention, 2 H^2 for
    those of cross-attention, 8 H^2 for an MLP, and 2 H for each token it attends to. The
    upstream's keys and values cost another 2 H^2 per upstream token and block. What packing adds to
    fill rows counts nothing, nor do adaLN vectors (0.02 % of a dense run). A corrector's
    convolutions run over the whole latent.

    Args:
        qdm: the network.
        index: which tokens of which batch exist.
        num_steps: steps of the sampler.
    """
    hidden, depth = qdm.hidden_size, len(qdm.upstream.blocks)
    ends = qdm.upstream.embed.in_channels + qdm.latent_channels  # first and last layer, per latent
    batch, height, width = index.size
    coarse = height * width // UPSTREAM_PATCH**2
    upstream = coarse * (
        UPSTREAM_PATCH**2 * ends * hidden + depth * (12 * hidden**2 + 2 * coarse * hidden)
    )
    total = batch * upstream
    if index.count:
        per_window = index.windows.valid.sum(dim=1)
        pairs = int((per_window**2).sum())
        total += batch * depth * coarse * 2 * hidden**2
        total += depth * 2 * pairs * hidden
        total += index.count * (
            PATCH**2 * ends * hidden + depth * (22 * hidden**2 + 2 * coarse * hidden)
        )
    if qdm.corrector is not None:
        total += batch * _convolutions(qdm.corrector, height * width)
    return num_steps * total


def _convolutions(corrector: Corrector, latents: int) -> int:
    """Multiply-adds of a corrector: each weight of a convolution once per place."""

    def weights(*parts: nn.Module) -> int:
        kinds = (nn.Conv2d, nn.ConvTranspose2d)
        return sum(m.weight.numel() for p in parts for m in p.modules() if isinstance(m, kinds))

    fine = weights(corrector.first, corrector.before, corrector.after, corrector.last)
    return fine * latents + weights(corrector.down, corrector.coarse, corrector.up) * latents // 4
