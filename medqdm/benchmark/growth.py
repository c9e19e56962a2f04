"""Growth: how cost follows refined cells, slices in a batch, and the size of a slice."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from medqdm.benchmark.measure import Line, PeakMemory, Stopwatch, fit_line, free_memory
from medqdm.benchmark.subject import Subject, every_region, lr_batch, noise_like
from medqdm.config import override
from medqdm.device import autocast
from medqdm.engine import Engine
from medqdm.models.windows import PATCH, Packing, WindowIndex

DENSITIES = (0.0, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0)
BATCHES = (1, 2, 4, 8, 16, 32, 64)
SIDES_PX = (256, 512, 1024, 2048)
MEMORY_SHARE = 0.8  # of free memory: a batch expected to need more is not tried
BATCH_LIMIT_S = 120.0  # nor one expected to last longer
PACKINGS: tuple[Packing, ...] = ("windows", "tokens")

Announce = Callable[[str], None]


@dataclass(frozen=True)
class DensityPoint:
    """The denoiser at one share of refined cells; seconds and counts are a slice's.

    Args:
        packing: of the downstream's tokens.
        share: of cells that are refined.
        tokens: downstream tokens that ran.
        windows: windows that they lie in.
        seconds: of all steps, median.
    """

    packing: str
    share: float
    tokens: float
    windows: float
    seconds: float


@dataclass(frozen=True)
class DensityFit:
    """The denoiser's seconds a slice as ``a + b * tokens``.

    Args:
        packing: of the downstream's tokens.
        line: a in seconds, b in seconds a token, R^2.
        a_over_dense: a over the time at 100 %, where all tokens run.
    """

    packing: str
    line: Line
    a_over_dense: float


@dataclass(frozen=True)
class BatchPoint:
    """Encode, denoise and decode of a batch.

    Args:
        slices: in the batch.
        seconds: a slice.
        peak_bytes: most memory above that of the loaded model.
    """

    slices: int
    seconds: float
    peak_bytes: int


@dataclass(frozen=True)
class SidePoint:
    """A whole slice through ``Enhancer``, tile by tile.

    Args:
        side_px: of the output.
        seconds: a slice.
        peak_bytes: most memory above that of the loaded model.
    """

    side_px: int
    seconds: float
    peak_bytes: int


@dataclass(frozen=True)
class Growth:
    """How cost grows, at the precision that the device's default is.

    Args:
        density: with all steps of the schedule.
        fits: one for each packing.
        batches: at the task's own steps and packing.
        batches_end: why larger batches were not tried; empty if all were.
        sides: at the task's own steps and packing.
    """

    density: list[DensityPoint]
    fits: list[DensityFit]
    batches: list[BatchPoint]
    batches_end: str
    sides: list[SidePoint]


def measure(
    subject: Subject,
    repeats: int,
    batches: Sequence[int],
    sides_px: Sequence[int],
    announce: Announce,
) -> Growth:
    """Measure all three.

    Args:
        subject: model and slices.
        repeats: timed runs of each density.
        batches: slices in a batch, rising.
        sides_px: sides of output slices.
        announce: called with what is done next.
    """
    density = by_density(subject, repeats, announce)
    points, reason = by_batch(subject, batches, repeats, announce)
    return Growth(density, fit(density), points, reason, by_side(subject, sides_px, announce))


def refine_share(
    ranges: Float[Tensor, "b cells_y cells_x"], share: float, rows: int, columns: int
) -> Bool[Tensor, "b rows columns"]:
    """The given share of tokens with the largest ranges: what a threshold at a quantile refines.

    Args:
        ranges: max - min of each cell.
        share: in [0, 1]; met to a token, though many cells of air share one range.
        rows: tokens along y.
        columns: tokens along x.
    """
    detail = functional.adaptive_max_pool2d(ranges[:, None], (rows, columns)).flatten(1)
    order = detail.argsort(dim=1, descending=True, stable=True)
    refined = torch.zeros_like(detail, dtype=torch.bool)
    chosen = order[:, : round(share * rows * columns)]
    return refined.scatter(1, chosen, True).reshape(len(ranges), rows, columns)


@torch.no_grad()
def by_density(subject: Subject, repeats: int, announce: Announce) -> list[DensityPoint]:
    """Seconds of the denoiser at each share of refined cells, packed both ways."""
    enhancer = subject.enhancer
    device, batch = enhancer.device, len(subject.lr.hu)
    num_steps = enhancer.task.diffusion.num_steps
    task = override(enhancer.task, every_region(num_steps))
    engine = Engine(task, enhancer.engine.autoencoder, enhancer.engine.qdm).to(device).eval()
    lr = _lr(subject, batch)
    with autocast(device, enhancer.precision):
        z_lr = engine.encode(engine.upsample(lr))
    ranges = engine.quadtree(lr).ranges[0]
    rows, columns = z_lr.shape[2] // PATCH, z_lr.shape[3] // PATCH
    indexes = {
        (packing, share): WindowIndex(refine_share(ranges, share, rows, columns), packing=packing)
        for packing in PACKINGS
        for share in DENSITIES
    }
    times: dict[tuple[Packing, float], list[float]] = {key: [] for key in indexes}
    for k in range(repeats + 1):  # the first round warms up
        announce(f"density: {'warm-up' if k == 0 else f'round {k} of {repeats}'}")
        for key, index in indexes.items():
            watch = Stopwatch(device)
            with autocast(device, enhancer.precision), watch.lap("denoise"):
                engine.denoise(lr, z_lr, index, noise_like(z_lr))
            if k:
                times[key].append(watch.seconds["denoise"] / batch)
    return [
        DensityPoint(
            packing,
            share,
            tokens=index.count / batch,
            windows=index.num_windows / batch,
            seconds=statistics.median(times[packing, share]),
        )
        for (packing, share), index in indexes.items()
    ]


def fit(points: Sequence[DensityPoint]) -> list[DensityFit]:
    """Lines through the points of each packing."""
    fits = []
    for packing in dict.fromkeys(point.packing for point in points):
        own = [point for point in points if point.packing == packing]
        line = fit_line([p.tokens for p in own], [p.seconds for p in own])
        dense = max(own, key=lambda point: point.share).seconds
        fits.append(DensityFit(packing, line, line.a / dense))
    return fits


@torch.no_grad()
def by_batch(
    subject: Subject, batches: Sequence[int], repeats: int, announce: Announce
) -> tuple[list[BatchPoint], str]:
    """Seconds a slice and memory for batches of rising size; why it ended early, or nothing."""
    enhancer = subject.enhancer
    device, engine = enhancer.device, enhancer.engine
    points: list[BatchPoint] = []
    for count in batches:
        if points:
            reason = _too_much(points[-1], count, free_memory(device))
            if reason:
                return points, reason
        announce(f"batch of {count}")
        lr = _lr(subject, count)
        with autocast(device, enhancer.precision):
            like = engine.encode(engine.upsample(lr[:1])).expand(count, -1, -1, -1)
            with PeakMemory(device) as memory:
                engine.enhance(lr, noise_like(like))
            watches = [Stopwatch(device) for _ in range(max(1, repeats // count))]
            for watch in watches:
                with watch.lap("batch"):
                    engine.enhance(lr, noise_like(like))
        seconds = statistics.median(watch.seconds["batch"] for watch in watches)
        points.append(BatchPoint(count, seconds / count, memory.num_bytes))
    return points, ""


def _too_much(last: BatchPoint, count: int, free_bytes: int) -> str:
    """Why a batch is not tried, judging by the last one; empty if it may be."""
    needed = last.peak_bytes * count / last.slices
    if needed > MEMORY_SHARE * free_bytes:
        return (
            f"a batch of {count} was not tried: it would need about {needed / 1e9:.1f} GB, "
            f"{free_bytes / 1e9:.1f} GB are free"
        )
    if last.seconds * count > BATCH_LIMIT_S:
        return f"a batch of {count} was not tried: it would take about {last.seconds * count:.0f} s"
    return ""


def by_side(subject: Subject, sides_px: Sequence[int], announce: Announce) -> list[SidePoint]:
    """Seconds and memory of whole slices of several sizes."""
    enhancer = subject.enhancer
    image = np.asarray(subject.lr.hu[len(subject.lr.hu) // 2])
    points = []
    for side in sides_px:
        announce(f"slice of {side} x {side}")
        lr = resized(image, side // enhancer.task.upscale)
        with PeakMemory(enhancer.device) as memory:
            enhancer.enhance_slice(lr)
        watch = Stopwatch(enhancer.device)
        with watch.lap("slice"):
            enhancer.enhance_slice(lr)
        points.append(SidePoint(side, watch.seconds["slice"], memory.num_bytes))
    return points


def resized(image: NDArray[np.float32], side: int) -> NDArray[np.float32]:
    """A square of another size and the same pixel size: the middle, or mirrored at its edges.

    Args:
        image: ``(y, x)``, square.
        side: in pixels.
    """
    missing = max(0, side - len(image))
    before = missing // 2
    wide = np.pad(image, [(before, missing - before)] * 2, mode="symmetric")
    start = (len(wide) - side) // 2
    return wide[start : start + side, start : start + side]


def _lr(subject: Subject, count: int) -> Tensor:
    """Slices of the subject, from the first again after the last."""
    hu = np.asarray(subject.lr.hu)
    return lr_batch(hu[np.arange(count) % len(hu)], subject.enhancer.engine)
