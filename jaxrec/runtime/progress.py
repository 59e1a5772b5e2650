"""Progress on standard error: a bar on a terminal and in a notebook, plain lines elsewhere."""

import importlib.util
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

    A terminal and a notebook get a tqdm bar; anything else gets a line every `every` seconds and
    one at the end.
    """
    kind = _kind_of_bar(sys.stderr)
    if kind is not None:
        yield from kind(values, total=total, desc=label, dynamic_ncols=True)
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

    total: steps of the run. start: steps done before. quiet: shows nothing. A terminal and a
    notebook get a tqdm bar (plain lines where tqdm is not installed); anything else gets a line at
    every `log`.
    """

    def __init__(
        self, total: int, start: int = 0, stream: TextIO | None = None, quiet: bool = False
    ):
        self._stream = stream or sys.stderr
        self._quiet = quiet
        self._total, self._start, self._step = total, start, start
        self._since = time.monotonic()
        self._bar: tqdm | None = None
        kind = None if quiet else _kind_of_bar(self._stream)
        if kind is not None:
            self._bar = kind(
                total=total, initial=start, unit="step", file=self._stream, dynamic_ncols=True
            )

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


def _kind_of_bar(stream: TextIO) -> "type[tqdm] | None":
    """The bar that suits a stream; None: plain lines.

    A notebook without ipywidgets gets the bar of a terminal, which is drawn in text.
    """
    notebook = _is_notebook(stream)
    if not notebook and not stream.isatty():
        return None
    try:
        # tqdm.auto would warn where ipywidgets is missing
        if notebook and importlib.util.find_spec("ipywidgets") is not None:
            from tqdm.notebook import tqdm
        else:
            from tqdm import tqdm
    except ImportError:
        return None
    return tqdm


def _is_notebook(stream: TextIO) -> bool:
    """Whether what is written to the stream is shown below a cell of a Jupyter notebook."""
    return type(stream).__module__.startswith("ipykernel.")


def clock(seconds: float) -> str:
    """Seconds as `1:02:03` or `2:03`."""
    minutes, second = divmod(round(seconds), 60)
    hour, minute = divmod(minutes, 60)
    return f"{hour}:{minute:02d}:{second:02d}" if hour else f"{minute}:{second:02d}"
