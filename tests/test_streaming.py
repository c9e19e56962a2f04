"""Order, bounds, exceptions and ends of the two helpers, without clocks."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medqdm import io
from medqdm.streaming import map_behind, prefetch
from medqdm.volume import SliceStack, Volume

Helper = Callable[[Iterable[Any]], Iterator[Any]]

both = pytest.mark.parametrize(
    "through",
    [lambda items: prefetch(items, 2), lambda items: map_behind(lambda x: x, items, 2)],
    ids=["prefetch", "map_behind"],
)


def helpers() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("medqdm-")]


@both
def test_order_is_kept_and_no_thread_is_left(through: Helper) -> None:
    assert list(through(range(50))) == list(range(50))
    assert list(through([])) == []
    assert helpers() == []


@both
@pytest.mark.parametrize("error", [ValueError, SystemExit, KeyboardInterrupt])
def test_exceptions_of_the_source_arrive_in_their_turn(through: Helper, error: type) -> None:
    def source() -> Iterator[int]:
        yield from range(3)
        raise error("broken")

    found = []
    with pytest.raises(error, match="broken"):
        found.extend(through(source()))
    assert helpers() == []


def test_exceptions_of_the_function_arrive_in_their_turn() -> None:
    results = map_behind(lambda x: 1 // x, [1, 1, 0, 1], 1)
    assert [next(results), next(results)] == [1, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert helpers() == []


@both
def test_no_more_is_fetched_than_the_depth(through: Helper) -> None:
    fetched: list[int] = []

    def source() -> Iterator[int]:
        for k in range(100):
            fetched.append(k)
            yield k

    with closing(through(source())) as items:  # type: ignore[type-var]
        for k, _ in zip(range(10), items, strict=False):
            assert len(fetched) <= k + 1 + 3
    assert len(fetched) <= 10 + 1 + 3
    assert helpers() == []


def test_items_are_fetched_while_the_consumer_works() -> None:
    fetched = threading.Event()

    def source() -> Iterator[str]:
        yield "first"
        fetched.set()
        yield "second"

    items = prefetch(source(), 1)
    assert next(items) == "first"
    assert fetched.wait(60)  # the consumer has not asked for it
    assert list(items) == ["second"]


def test_the_function_runs_while_the_next_item_is_made() -> None:
    caller, begun, made = threading.get_ident(), threading.Event(), threading.Event()

    def source() -> Iterator[int]:
        assert threading.get_ident() == caller
        yield 1
        assert begun.wait(60)
        made.set()
        yield 2

    def work(item: int) -> bool:
        begun.set()
        return made.wait(60) and threading.get_ident() != caller

    assert list(map_behind(work, source(), 1)) == [True, True]


PEAK = """
import resource, sys
import torch
from medqdm.engine import Drawn, Engine
from medqdm.enhance import enhance_series

def nothing(self, lr, z_lr, noises, **options):
    return Drawn([z_lr], self.quadtree(lr).refined, cost=None)

def bicubic(self, latents, lr, **options):
    return self.upsample(lr), None

torch.set_num_threads(1)
Engine.draw, Engine.show = nothing, bicubic  # memory of the pipeline, not the network's
series, out, weights, kind = sys.argv[1:]
enhance_series(series, out, weights=weights, device="cpu", file_format=kind,
               settings=["slice_px=1024"])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dicom", "nifti"])
def test_memory_does_not_grow_with_the_slices(weights: Path, tmp_path: Path, kind: str) -> None:
    px, peaks_mb = 256, []
    for slices in (6, 60):
        shape = (slices, px, px)
        images = SliceStack(
            shape,
            np.float32,
            lambda z: np.random.default_rng(z).normal(0, 200, (px, px)).astype("f4"),
        )
        origins = np.arange(slices)[:, None] * np.array([0, 0, 2.0])
        volume = Volume(images, origins, np.array([0.7, 0, 0]), np.array([0, 0.7, 0]))
        series = tmp_path / f"{slices}"
        io.write_series(volume, iter(images), series, upscale=1, description="test",
                        software_version="0", weights_id="0", uid_entropy=[])  # fmt: skip
        command = [sys.executable, "-c", PEAK, series, tmp_path / f"out{slices}", weights, kind]
        # large arrays go back to the system at once, so that the peak is that of living ones
        env = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
        peaks_mb.append(int(done.stdout.split()[-1]) / 1024)
    # 54 slices more: 14 MB as float32 input, 113 MB as int16 output
    assert peaks_mb[1] - peaks_mb[0] < 9
