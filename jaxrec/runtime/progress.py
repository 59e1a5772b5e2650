"""Progress on standard error: a bar on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, TextIO, TypeVar

if TYPE_CHECKING:
    from tqdm import tqdm

T = TypeVar("T")


def say(message: str) -> None:
    """Writes a line to standard error."""
    print(message, file=sys.stderr, flush=True)


def track(values: Iterable[T], total: int, label: str, every: float = 10.0) -> Iterator[T]:
    """Yields `values` and shows how many of `total` are done.

    A terminal gets a tqdm bar; anything else gets a line every `every` seconds and one at the end.
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


class Progress:
    """Shows step, loss, steps/s and time left of a training run on `stream` (default: stderr).

    total: steps of the run. start: steps done before. quiet: shows nothing. A terminal gets a tqdm
    bar (plain lines where tqdm is not installed); anything else gets a line at every `log`.
    """

    def __init__(
        self, total: int, start: int = 0, stream: TextIO | None = None, quiet: bool = False
    ):
        self._stream = stream or sys.stderr
        self._quiet = quiet
        self._total, self._start, self._step = total, start, start
        self._since = time.monotonic()
        self._bar: tqdm | None = None
        if self._stream.isatty() and not quiet:
            self._bar = _bar(self._stream, total, start)

    def start(self, step: int) -> None:
        """Estimates the time left from here on."""
        self._start, self._since = step, time.monotonic()

    def update(self, step: int) -> None:
        """Moves the bar to `step` steps."""
        if self._bar is not None:
            self._bar.update(step - self._step)
        self._step = step

    def log(self, step: int, loss: float, rate: float) -> None:
        """Shows the mean loss of the last steps and the rate in steps per second."""
        if self._bar is not None:
            self._bar.set_postfix_str(f"loss {loss:.4f}", refresh=False)
            return
        elapsed = time.monotonic() - self._since
        mean = (step - self._start) / elapsed if elapsed > 0 else 0.0
        left = clock((self._total - step) / mean) if mean else "?"
        self.say(f"step {step}/{self._total}  loss {loss:.4f}  {rate:.2f} steps/s  {left} left")

    def say(self, text: str) -> None:
        """Writes a line above the bar."""
        if self._bar is not None:
            self._bar.write(text, file=self._stream)
        elif not self._quiet:
            print(text, file=self._stream, flush=True)

    def close(self) -> None:
        """Ends the bar."""
        if self._bar is not None:
            self._bar.close()


def _bar(stream: TextIO, total: int, start: int) -> "tqdm | None":
    try:
        from tqdm import tqdm
    except ImportError:
        return None
    return tqdm(total=total, initial=start, unit="step", file=stream, dynamic_ncols=True)


def clock(seconds: float) -> str:
    """Seconds as `1:02:03` or `2:03`."""
    minutes, second = divmod(round(seconds), 60)
    hour, minute = divmod(minutes, 60)
    return f"{hour}:{minute:02d}:{second:02d}" if hour else f"{minute}:{second:02d}"
