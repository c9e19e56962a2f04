"""Samplers: settings of the sampler on the same slices and noise, side by side, with controls."""

import hashlib
import json
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medqdm import metrics
from medqdm.config import Task, override
from medqdm.diffusion import policies
from medqdm.diffusion.policies import Policy
from medqdm.diffusion.sampler import Noise
from medqdm.engine import Engine
from medqdm.enhancer import Enhancer
from medqdm.errors import MedQDMError
from medqdm.evaluate.intervals import Interval, interval
from medqdm.evaluate.run import describe
from medqdm.picture import upsample_bicubic
from medqdm.sampling import random_scores
from studies.samplers.blocks import Block
from studies.samplers.rows import BICUBIC, REFERENCE, Row, uniform_row

Image = NDArray[np.float32]
Counts = dict[str, Tensor]  # an LR tile -> regions that ran at each step
Instead = Callable[[Policy, Tensor, Noise], Policy]
Open = Callable[[Row], Enhancer]
Track = Callable[[Iterable[Block], int], Iterable[Block]]
Kind = Literal["setting", "control", "baseline"]

AS_GOOD_DB = 0.05  # a PSNR this much lower counts as reached
CHEAP_SHARE = 0.25  # of the reference's region-steps
_ADAPTIVE = ("tss", "gain", "groups")


@dataclass(frozen=True, eq=False)
class Measured:
    """What one setting reached.

    Args:
        row: the setting.
        kind: ``setting``; ``control``, made for an adaptive policy; or ``baseline``, no network.
        values: patient to metric to value; what makes no sense is absent.
        about: weights, precision and the whole ``diffusion`` section, as JSON.
    """

    row: Row
    kind: Kind
    values: dict[str, dict[str, float]]
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def is_control(self) -> bool:
        """Whether its sampler is one of the task's own controls."""
        name = self.about.get("diffusion", {}).get("sampler", {}).get("name")
        return name in {"random", "upstream"}

    def by_patient(self, metric: str) -> dict[str, float]:
        """Patient to value; patients without one are absent."""
        return {name: found[metric] for name, found in self.values.items() if metric in found}

    def mean(self, metric: str) -> float | None:
        """Mean over patients; None if nothing was measured."""
        found = self.by_patient(metric)
        return sum(found.values()) / len(found) if found else None


@dataclass(frozen=True)
class Trial:
    """An adaptive policy and the controls that it must beat.

    Args:
        policy: name of its row.
        uniform: names of uniform rows to their weights: between the two step counts next to as many
            region-steps as the policy's, PSNR is taken in proportion.
        random: row with as many regions at each step, drawn by lot; None if it left none out.
        upstream: row in which the downstream never runs; None if it left none out.
    """

    policy: str
    uniform: dict[str, float]
    random: str | None
    upstream: str | None


@dataclass(frozen=True, eq=False)
class Comparison:
    """All rows of a run.

    Args:
        settings: versions, model and task of the reference row, as JSON.
        reference: name of the row that the others are compared with.
        results: name to what was measured, in the order of the table; ``reference`` is the truth
            itself.
        trials: one for each adaptive policy.
        patients: patient to its slices and their degradation, as JSON.
    """

    settings: dict[str, Any]
    reference: str
    results: dict[str, Measured]
    trials: list[Trial]
    patients: dict[str, Any]

    def difference(self, metric: str, name: str, other: dict[str, float]) -> Interval | None:
        """A row minus a weighted mean of others, patient by patient, with its interval.

        Args:
            metric: which.
            name: of the row.
            other: names of rows to weights that sum to 1.
        """
        ours = self.results[name].by_patient(metric)
        theirs = [(self.results[row].by_patient(metric), w) for row, w in other.items()]
        values = [
            ours[patient] - sum(w * found[patient] for found, w in theirs)
            for patient in ours
            if all(patient in found for found, _ in theirs)
        ]
        return interval(values) if values and np.isfinite(values).all() else None

    def share(self, name: str) -> float | None:
        """Region-steps of a row as a share of the reference's."""
        ours = self.results[name].mean("region_steps")
        whole = self.results[self.reference].mean("region_steps")
        return None if ours is None or not whole else ours / whole

    def usable(self) -> list[str]:
        """Rows that could be a default: all but baselines, random regions and upstream alone."""
        controls = {name for trial in self.trials for name in (trial.random, trial.upstream)}
        return [
            name
            for name, found in self.results.items()
            if found.kind != "baseline" and name not in controls and not found.is_control
        ]

    def best(self) -> str:
        """The usable row with the fewest region-steps that is within 0.05 dB of the highest PSNR.

        Between equals, the faster one.
        """
        psnr = {name: self.results[name].mean("psnr_db") or -math.inf for name in self.usable()}
        good = [name for name in psnr if psnr[name] >= max(psnr.values()) - AS_GOOD_DB]

        def cost(name: str) -> tuple[float, float]:
            found = self.results[name]
            return found.mean("region_steps") or 0.0, found.mean("seconds") or 0.0

        return min(good, key=cost)

    def cheap_and_good(self) -> list[str]:
        """Usable rows within 0.05 dB of the reference, at a quarter of its region-steps or less."""
        wanted = (self.results[self.reference].mean("psnr_db") or 0.0) - AS_GOOD_DB
        return [
            name
            for name in self.usable()
            if (self.results[name].mean("psnr_db") or -math.inf) >= wanted
            and (self.share(name) or 0.0) <= CHEAP_SHARE
        ]


def compare(
    open_enhancer: Open,
    rows: Sequence[Row],
    blocks: Sequence[Block],
    *,
    announce: Callable[[str], None] = lambda _text: None,
    track: Track = lambda blocks, _total: blocks,
) -> Comparison:
    """Measure rows on blocks of slices, and the controls of those that are adaptive.

    Args:
        open_enhancer: row to its model; all with one seed, so that the noise is the same.
        rows: the reference first.
        blocks: of the same upscale and window as the models (``check_row``).
        announce: told the name of each row before it begins.
        track: wraps the blocks of a row, with their number, to show progress.
    """
    bench = _Bench(open_enhancer, blocks, announce, track)
    first = bench.run(rows[0], "setting")
    results = {row.name: bench.run(row, "setting") for row in rows[1:]}
    trials = [bench.try_against_controls(row.name) for row in rows if bench.is_adaptive(row.name)]
    results = {first.row.name: first, **results, **bench.controls}
    patients = {block.patient: block.about() for block in blocks}
    return Comparison(
        settings=bench.settings,
        reference=first.row.name,
        results={**results, BICUBIC: _bicubic(blocks), REFERENCE: _truth(blocks)},
        trials=trials,
        patients=patients,
    )


def check_row(row: Row, task: Task, like: Task) -> None:
    """Refuse a row that cannot stand beside the others, before any of them runs.

    Args:
        row: which.
        task: its own.
        like: the task whose slices it would get.

    Raises:
        MedQDMError: another upscale, window or slice size, or more steps than the model has.
    """
    for key in ("upscale", "window", "slice_px"):
        if getattr(task, key) != getattr(like, key):
            raise MedQDMError(
                f"--samplers: row {row.name}: {key} must be {getattr(like, key)} like the others', "
                f"got {getattr(task, key)}; compare it on its own"
            )
    steps, most = task.diffusion.sampling_steps or 1, task.diffusion.num_steps
    if steps > most:
        raise MedQDMError(
            f"--samplers: row {row.name}: diffusion.sampling_steps must be 1 to {most}, got {steps}"
            "; the model was trained on that many"
        )


class _Bench:
    """Runs rows and remembers what was run."""

    def __init__(
        self,
        open_enhancer: Open,
        blocks: Sequence[Block],
        announce: Callable[[str], None],
        track: Track,
    ) -> None:
        self._open, self._blocks = open_enhancer, blocks
        self._announce, self._track = announce, track
        self._tasks: dict[str, Task] = {}
        self._found: dict[str, Measured] = {}
        self._counts: dict[str, Counts] = {}
        self.controls: dict[str, Measured] = {}
        self.settings: dict[str, Any] = {}

    def is_adaptive(self, name: str) -> bool:
        """Whether a row that was run decides by the image where or when the downstream runs."""
        return self._tasks[name].diffusion.sampler.name in _ADAPTIVE

    def run(self, row: Row, kind: Kind, instead: Instead | None = None) -> Measured:
        """Measure a row, with other policies instead of its own if asked for."""
        self._announce(row.name)
        enhancer = self._open(row)
        self.settings = self.settings or describe(enhancer)
        watch = Watch(enhancer.engine, instead)
        values: dict[str, dict[str, float]] = {}
        for block in self._track(self._blocks, len(self._blocks)):
            stack, seconds = _enhance(enhancer, block, watch)
            cost = {**watch.cost(len(block)), "seconds": seconds}
            values[block.patient] = {**score(stack, block), **cost}
        about = {
            "weights_sha256": enhancer.sha256,
            "precision": enhancer.precision,
            "batch_size": enhancer.batch_size,
            "diffusion": enhancer.task.diffusion.model_dump(mode="json"),
        }
        found = Measured(row, kind, values, about)
        self._tasks[row.name], self._counts[row.name] = enhancer.task, watch.counts
        self._found[row.name] = found
        return found

    def try_against_controls(self, name: str) -> Trial:
        """Run what an adaptive row must beat, as far as it was not run before."""
        found, task = self._found[name], self._tasks[name]
        steps, regions = found.mean("region_steps") or 0.0, found.mean("regions") or 0.0
        equal = min(steps / regions if regions else 0.0, float(task.diffusion.num_steps))
        low = math.floor(equal + 1e-6)
        high = math.ceil(equal - 1e-6)
        upper = 1.0 if low == high else equal - low
        uniform = {
            self._uniform(found.row, n): w for n, w in ((low, 1 - upper), (high, upper)) if w
        }
        if steps > regions * len(next(iter(self._counts[name].values()))) - 1e-6:
            return Trial(name, uniform, None, None)
        random = Row(f"random like {name}", "random regions", found.row.settings, found.row.weights)
        self.controls[random.name] = self.run(random, "control", _draw(self._counts[name]))
        return Trial(name, uniform, random.name, self._uniform(found.row, 0))

    def _uniform(self, row: Row, steps: int) -> str:
        """Name of the row with all regions at some steps; with 0 of them, upstream alone."""
        task = self._tasks[row.name]
        gamma = task.diffusion.gamma
        plain = uniform_row(steps or task.diffusion.num_steps, gamma)
        settings = plain.settings
        if steps == 0:
            plain = Row(f"upstream-g{gamma:g}", "upstream alone")
            settings = ("diffusion.sampler.name=upstream", *settings[1:])
        wanted = _identity(override(task, settings))
        for name, measured in self._found.items():
            same = measured.row.weights == row.weights and _identity(self._tasks[name]) == wanted
            if same and not name.startswith("random "):
                return name
        name = plain.name if plain.name not in self._found else f"{plain.name} for {row.name}"
        control = Row(name, plain.family, (*row.settings, *settings), row.weights)
        self.controls[name] = self.run(control, "control")
        return name


class Watch:
    """Stands between an engine and its policies: keeps what they cost, or puts others in place.

    It does so inside a ``with`` block alone.

    Args:
        engine: whose policies.
        instead: from the engine's policy, the LR tiles and the noise to the policy that runs.
    """

    def __init__(self, engine: Engine, instead: Instead | None) -> None:
        self._engine = engine
        self._make = engine.policy
        self._instead = instead
        self._seen: list[tuple[Tensor, Policy]] = []
        self.counts: Counts = {}

    def __enter__(self) -> None:
        self._engine.policy = self  # type: ignore[method-assign]  # called like the method

    def __exit__(self, *_: object) -> None:
        del self._engine.policy

    def __call__(
        self, lr: Tensor, z_lr: Tensor, index: Any, noise: Noise, *rest: Any, **named: Any
    ) -> Policy:
        """The policy of one batch, remembered; called like ``Engine.policy``."""
        policy = self._make(lr, z_lr, index, noise, *rest, **named)
        if self._instead is not None:
            policy = self._instead(policy, lr, noise)
        self._seen.append((lr, policy))
        return policy

    def cost(self, num_slices: int) -> dict[str, float]:
        """Costs a slice of what ran since the last call.

        Args:
            num_slices: slices that ran.
        """
        calls = region_steps = token_steps = regions = 0.0
        # a batch that did not fit into memory stopped on the way and ran again in parts
        whole = [(lr, p) for lr, p in self._seen if len(p.cost.regions) == len(p.steps)]
        for lr, policy in whole:
            calls += policy.cost.evaluations * len(lr)
            region_steps += float(policy.cost.region_steps.sum())
            token_steps += float(policy.cost.token_steps.sum())
            regions += float((policy.tokens > 0).sum())
            steps = torch.stack(policy.cost.regions, dim=1).cpu()
            self.counts |= {_key(tile): steps[k] for k, tile in enumerate(lr)}
        self._seen.clear()
        return {
            "evaluations": calls / sum(len(lr) for lr, _ in whole),
            "region_steps": region_steps / num_slices,
            "token_steps": token_steps / num_slices,
            "regions": regions / num_slices,
        }


def _key(tile: Tensor) -> str:
    """What names an LR tile: its pixels."""
    return hashlib.sha256(tile.cpu().numpy().tobytes()).hexdigest()


def _draw(counts: Counts) -> Instead:
    """As many regions of each tile at each step as another run had, drawn by lot."""

    def random(policy: Policy, lr: Tensor, noise: Noise) -> Policy:
        known = torch.stack([counts[_key(tile)] for tile in lr], dim=1).to(lr.device)
        steps = [int(t) for t in policy.steps]  # maps are of policies that leave none out
        return policies.Random(
            steps, policy.tokens, counts=list(known), score=lambda k: random_scores(noise, k)
        )

    return random


def _enhance(enhancer: Enhancer, block: Block, watch: Watch) -> tuple[Image, float]:
    """The enhanced slices ``(z, y, x)``, and seconds a slice from LR to SR in memory."""
    enhancer.prepare(block.lr)
    # memory and kernels are planned before the clock runs, on a GPU for each size of batch
    if enhancer.device.type == "cuda":
        deque(enhancer.slices(block.lr), maxlen=0)
    else:
        enhancer.enhance_slice(block.lr.hu[0])
    with watch:
        began = time.perf_counter()
        stack = np.stack([done.hu for done in enhancer.slices(block.lr)])
        seconds = time.perf_counter() - began
    return stack, seconds / len(block)


def _identity(task: Task) -> str:
    """What decides a run's result: two tasks of one identity need not both run."""
    data = task.model_dump(mode="json", exclude={"training", "name", "description"})
    diffusion = data["diffusion"]
    sampler = diffusion["sampler"]
    diffusion["sampling_steps"] = diffusion["sampling_steps"] or diffusion["num_steps"]
    if diffusion["sampling_steps"] == 1:
        diffusion["gamma"] = None
    for key in ("tss", "gain", "groups", "random_share"):
        if not sampler["name"].startswith(key.partition("_")[0]):
            sampler[key] = None
    return json.dumps(data, sort_keys=True)


def score(stack_hu: Image, block: Block) -> dict[str, float]:
    """The metrics of a block's slices; what cannot be measured is absent.

    Args:
        stack_hu: ``(z, y, x)`` output in HU.
        block: its truth and input.
    """
    window, hr_hu = block.window, block.hr_hu
    pairs = list(zip(stack_hu, hr_hu, strict=True))
    rise_px = block.rise_px(stack_hu)
    flicker = metrics.flicker_hu(stack_hu)
    found: dict[str, Any] = {
        "psnr_db": np.mean([metrics.psnr_db(sr, hr, window) for sr, hr in pairs]),
        "ssim": np.mean([metrics.ssim(sr, hr, window) for sr, hr in pairs]),
        "mae_hu": metrics.mae_hu(stack_hu, hr_hu),
        "lr_consistency_hu": np.mean(
            [
                metrics.lr_consistency_hu(sr, np.asarray(lr))
                for sr, lr in zip(stack_hu, block.lr.hu, strict=True)
            ]
        ),
        "coronal_psnr_db": metrics.plane_psnr_db(stack_hu, hr_hu, window, 1, block.body),
        "sagittal_psnr_db": metrics.plane_psnr_db(stack_hu, hr_hu, window, 2, block.body),
        "edge_rise_px": rise_px,
        "edge_rise_mm": rise_px * block.spacing_mm,
        "edge_rise_ratio": rise_px / block.edge_rise_px,
        "flicker_hu": flicker,
        "flicker_ratio": flicker / block.flicker_hu if block.flicker_hu else math.nan,
    }
    return {name: float(value) for name, value in found.items() if not math.isnan(value)}


def _bicubic(blocks: Sequence[Block]) -> Measured:
    values = {}
    for block in blocks:
        began = time.perf_counter()
        factor = block.hr_hu.shape[1] // block.lr.shape[1]
        stack = np.stack([upsample_bicubic(np.asarray(hu), factor) for hu in block.lr.hu])
        seconds = (time.perf_counter() - began) / len(block)
        values[block.patient] = {**score(stack, block), "seconds": seconds}
    return Measured(Row(BICUBIC, BICUBIC), "baseline", values)


def _truth(blocks: Sequence[Block]) -> Measured:
    """What the truth itself reaches, where that is not perfection."""
    perfect = ("psnr_db", "ssim", "mae_hu", "coronal_psnr_db", "sagittal_psnr_db")
    values = {}
    for block in blocks:
        found = score(block.hr_hu, block)
        values[block.patient] = {name: v for name, v in found.items() if name not in perfect}
    return Measured(Row(REFERENCE, REFERENCE), "baseline", values)
