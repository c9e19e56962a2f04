"""Streaming: fetch the next items, or work on the last ones, while the caller is busy.

Both keep order and a bounded number of items, hand exceptions on to the consumer, and leave no
thread behind when the consumer stops early or is interrupted.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def prefetch(items: Iterable[Item], depth: int) -> Generator[Item]:
    """The items in order, up to ``depth`` of them fetched ahead on another thread.

    Args:
        items: anything iterable; only the other thread iterates over it.
        depth: at least 1.

    >>> list(prefetch(range(3), depth=2))
    [0, 1, 2]
    """
    iterator: Iterator[Item] = iter(items)
    end: Any = object()
    pool = ThreadPoolExecutor(1, "medqdm-prefetch")
    try:
        ahead = deque(pool.submit(next, iterator, end) for _ in range(depth))
        while (item := ahead.popleft().result()) is not end:
            ahead.append(pool.submit(next, iterator, end))
            yield item
    finally:
        pool.shutdown(cancel_futures=True)


def map_behind(
    function: Callable[[Item], Result], items: Iterable[Item], depth: int
) -> Iterator[Result]:
    """``function`` of each item in order, computed on another thread behind the caller's back.

    The items are fetched by the caller's own thread, at most ``depth`` of them before their
    results, so that a slow source and the function run at the same time.

    Args:
        function: called on the other thread, one call at a time.
        items: anything iterable.
        depth: at least 1.

    >>> list(map_behind(lambda x: x * x, [1, 2, 3], depth=1))
    [1, 4, 9]
    """
    pool = ThreadPoolExecutor(1, "medqdm-behind")
    behind: deque[Future[Result]] = deque()
    try:
        for item in items:
            behind.append(pool.submit(function, item))
            if len(behind) > depth:
                yield behind.popleft().result()
        while behind:
            yield behind.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
