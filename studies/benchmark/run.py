"""Run: the engine's variants side by side, from a DICOM series to a DICOM series."""

import os
import platform
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medqdm.device import is_bf16_fast
from medqdm.version import __version__
from studies.benchmark.measure import PeakMemory, matrix_rate, multiply_adds
from studies.benchmark.pipeline import (
    Outcome,
    Pipeline,
    Precision,
    Variant,
    refined_difference,
    write_slices,
)
from studies.benchmark.subject import Subject, lr_batch

STAGES = ("read", "encode", "denoise", "decode", "write")
FEWER_STEPS = (8, 4, 1)
REPEATS, QUICK_REPEATS = 5, 2
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}

Announce = Callable[[str], None]


@dataclass(frozen=True)
class Measured:
    """What a variant takes. Times are medians over the repeats, in seconds a slice.

    Args:
        name: of the variant.
        variant: its packing, precision and steps.
        seconds: stage to time; stages follow each other here, while ``medqdm enhance`` reads and
            writes beside the network.
        total: their sum.
        speedup: total of the first variant over this one's.
        peak_bytes: most memory above that of the loaded model, for the whole batch.
        windows: active windows a slice.
        tokens: downstream tokens a slice.
        multiply_adds: of the denoiser a slice, see ``measure.multiply_adds``.
        flops: FLOP/s of the denoiser, two for each multiply-add.
        matrix_share: that over the matrix rate of the same precision.
        shift_hu: mean absolute difference to fp32 of the same packing and steps; None for fp32.
        dense_difference: largest difference of refined latents (unit variance) to the dense fp32
            network's; for the windows fp32 variant alone.
    """

    name: str
    variant: dict[str, Any]
    seconds: dict[str, float]
    total: float
    speedup: float
    peak_bytes: int
    windows: float
    tokens: float
    multiply_adds: float
    flops: float
    matrix_share: float
    shift_hu: float | None = None
    dense_difference: float | None = None


@dataclass(frozen=True)
class Benchmark:
    """All that was measured.

    Args:
        about: machine, versions, model and slices, as JSON.
        matrix_flops: precision to FLOP/s of a matrix product on this machine.
        variants: the first is the one that the others are compared with.
    """

    about: dict[str, Any]
    matrix_flops: dict[str, float]
    variants: list[Measured]


@dataclass
class _Record:
    """What is known of a variant so far."""

    pipeline: Pipeline
    first: Outcome
    peak_bytes: int
    seconds: list[dict[str, float]] = field(default_factory=list)


def variants_for(num_steps: int, *, has_bf16: bool, has_paper: bool = False) -> list[Variant]:
    """The variants to compare: packing, then precision, then steps; dense fp32 first.

    Args:
        num_steps: of the schedule.
        has_bf16: whether the device multiplies bf16 in hardware; else bf16 is left out.
        has_paper: begin with the paper's KL-VAE instead of the task's autoencoder.
    """
    paper = [Variant("dense", "fp32", num_steps, "paper")] if has_paper else []
    full = paper + [Variant(p, "fp32", num_steps) for p in ("dense", "windows", "tokens")]
    if has_bf16:
        full += [Variant(p, "bf16", num_steps) for p in ("dense", "tokens")]
    last: Precision = "bf16" if has_bf16 else "fp32"
    return full + [Variant("tokens", last, k) for k in FEWER_STEPS if k < num_steps]


def run_benchmark(
    subject: Subject,
    *,
    repeats: int | None = None,
    quick: bool = False,
    paper_autoencoder: bool = False,
    announce: Announce = lambda _text: None,
) -> Benchmark:
    """Measure everything.

    Every variant runs once to warm up, which is also when its memory is watched. Then all run one
    after the other, again and again, so that whatever else the machine does hits all alike.

    Args:
        subject: model and slices.
        repeats: timed runs of each variant; None: 5, or 2 if quick.
        quick: fewer timed runs.
        paper_autoencoder: compare with dense fp32 and the paper's KL-VAE.
        announce: called with what is done next.
    """
    count = repeats or (QUICK_REPEATS if quick else REPEATS)
    device = subject.enhancer.device
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    rates: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="medqdm-") as name:
        folder = Path(name)
        write_slices(subject.lr, np.asarray(subject.lr.hu), folder / "lr", upscale=1)
        records = {}
        has_bf16 = is_bf16_fast(device)
        num_steps = subject.enhancer.task.diffusion.num_steps
        for variant in variants_for(num_steps, has_bf16=has_bf16, has_paper=paper_autoencoder):
            announce(f"warm-up: {variant.name}")
            pipeline = Pipeline(subject, variant)
            with PeakMemory(device) as memory:
                outcome = pipeline.run(folder)
            records[variant] = _Record(pipeline, outcome, memory.num_bytes)
        shifts = {variant: _shift_hu(variant, subject, records, folder) for variant in records}
        for k in range(count):
            announce(f"variants: round {k + 1} of {count}")
            for precision in sorted({variant.precision for variant in records}):
                rate = matrix_rate(device, _DTYPES[precision])
                rates.setdefault(precision, []).append(rate)
            for record in records.values():
                record.seconds.append(record.pipeline.run(folder).seconds)
    matrix_flops = {precision: statistics.median(found) for precision, found in rates.items()}
    measured = _summarize(subject, records, shifts, matrix_flops)
    about = _about(subject, count) | {"load_at_start": load}
    return Benchmark(about, matrix_flops, measured)


def _shift_hu(
    variant: Variant, subject: Subject, records: dict[Variant, _Record], folder: Path
) -> float | None:
    if variant.precision == "fp32":
        return None
    exact = variant._replace(precision="fp32")
    known = records.get(exact)
    reference = known.first if known else Pipeline(subject, exact).run(folder)
    return float(np.abs(reference.hu - records[variant].first.hu).mean())


def _summarize(
    subject: Subject,
    records: dict[Variant, _Record],
    shifts: dict[Variant, float | None],
    matrix_flops: dict[str, float],
) -> list[Measured]:
    batch, qdm = len(subject.lr.hu), subject.enhancer.engine.qdm
    dense = next(r.first for v, r in records.items() if v.autoencoder == "task")
    measured: list[Measured] = []
    for variant, record in records.items():
        index = record.first.index
        seconds = {
            stage: statistics.median(run[stage] for run in record.seconds) / batch
            for stage in STAGES
        }
        total = sum(seconds.values())
        work = multiply_adds(qdm, index, variant.steps) / batch
        flops = 2 * work / seconds["denoise"]
        is_exact = variant.packing == "windows" and variant.precision == "fp32"
        measured.append(
            Measured(
                name=variant.name,
                variant=variant._asdict(),
                seconds=seconds,
                total=total,
                speedup=measured[0].total / total if measured else 1.0,
                peak_bytes=record.peak_bytes,
                windows=index.num_windows / batch,
                tokens=index.count / batch,
                multiply_adds=work,
                flops=flops,
                matrix_share=flops / matrix_flops[variant.precision],
                shift_hu=shifts[variant],
                dense_difference=refined_difference(record.first, dense) if is_exact else None,
            )
        )
    return measured


def _about(subject: Subject, repeats: int) -> dict[str, Any]:
    enhancer = subject.enhancer
    tree_lr = lr_batch(np.asarray(subject.lr.hu), enhancer.engine)
    density = enhancer.engine.quadtree(tree_lr).density.mean()
    return {
        "medqdm": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": str(enhancer.device),
        "processor": _processor(enhancer.device),
        "threads": torch.get_num_threads(),
        "has_bf16": is_bf16_fast(enhancer.device),
        "precision": enhancer.precision,
        "task": enhancer.task.model_dump(mode="json", exclude={"training"}),
        "weights_sha256": None if subject.is_random else enhancer.sha256,
        "qdm_parameters": enhancer.engine.qdm.num_parameters(include_positions=False),
        "autoencoder_parameters": sum(p.numel() for p in enhancer.engine.autoencoder.parameters()),
        "slices": subject.slices,
        "batch": len(subject.lr.hu),
        "share_refined": float(density),
        "repeats": repeats,
    }


def _processor(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
