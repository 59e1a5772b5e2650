"""Numbered tasks, in threads of this process or wherever an engine runs them."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol, TypeVar

from jaxrec.runtime.progress import say

T = TypeVar("T")
REPORT_SECONDS = 10.0  # between two lines of progress


class Each(Protocol):
    """Runs a function for 0..count-1 and yields its results in order, such as `each`."""

    def __call__(
        self, function: Callable[[int], T], count: int, workers: int, label: str
    ) -> Iterator[T]:
        """Results of `function(0), ... function(count - 1)` in order, computed by `workers`."""
        ...


def each(function: Callable[[int], T], count: int, workers: int, label: str) -> Iterator[T]:
    """`function(0..count-1)` in threads, results in order; prints progress."""
    begin = shown = time.monotonic()
    with ThreadPoolExecutor(max(workers, 1)) as pool:
        # no more than a few waiting results at once: they may be large
        waiting: list[Future[T]] = []
        ahead = max(workers, 1) + 1
        try:
            for task in range(count + ahead):
                if task < count:
                    waiting.append(pool.submit(function, task))
                if task >= ahead or task >= count:
                    if not waiting:
                        break
                    yield waiting.pop(0).result()
                    now = time.monotonic()
                    if now - shown > REPORT_SECONDS:
                        done = min(task + 1, count) - len(waiting)
                        left = (now - begin) / done * (count - done)
                        say(f"{label}: {done} of {count} buckets, {left:.0f} s left")
                        shown = now
        finally:
            for future in waiting:
                future.cancel()
