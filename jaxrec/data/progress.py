"""Progress that is always visible: a bar on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def say(message: str) -> None:
    """One line on standard error."""
    print(message, file=sys.stderr, flush=True)


def track(values: Iterable[T], total: int, label: str, every: float = 10.0) -> Iterator[T]:
    """Yields `values`, showing how far it is.

    On a terminal a tqdm bar; elsewhere a line each `every` seconds and one at the end.
    """
    if sys.stderr.isatty():
        from tqdm import tqdm

        yield from tqdm(values, total=total, desc=label, dynamic_ncols=True)
        return
    start = last = time.monotonic()
    done = 0
    for value in values:
        yield value
        done += 1
        now = time.monotonic()
        if now - last >= every:
            left = (now - start) / done * (total - done)
            say(f"{label}: {done:,} of {total:,}, {left:.0f} s left")
            last = now
    say(f"{label}: {done:,} in {time.monotonic() - start:.1f} s")
