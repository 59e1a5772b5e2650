"""Progress of a training run: a bar on a terminal, plain lines elsewhere."""

import sys
import time
from typing import Any, TextIO


class Progress:
    """Shows step, loss, steps/s and time left on `stream` (default: standard error).

    total: steps of the run; start: steps done before. A terminal gets a tqdm bar (plain lines
    where tqdm is not installed); anything else gets a line at every `log`. quiet: nothing.
    """

    def __init__(
        self, total: int, start: int = 0, stream: TextIO | None = None, quiet: bool = False
    ):
        self._stream = stream or sys.stderr
        self._quiet = quiet
        self._total, self._start, self._step = total, start, start
        self._since = time.monotonic()
        self._bar: Any = None
        if self._stream.isatty() and not quiet:
            try:
                from tqdm import tqdm
            except ImportError:
                return
            self._bar = tqdm(
                total=total, initial=start, unit="step", file=self._stream, dynamic_ncols=True
            )

    def start(self, step: int) -> None:
        """Time left is reckoned from here on."""
        self._start, self._since = step, time.monotonic()

    def update(self, step: int) -> None:
        """`step` steps are done."""
        if self._bar is not None:
            self._bar.update(step - self._step)
        self._step = step

    def log(self, step: int, loss: float, rate: float) -> None:
        """Mean loss of the last steps, steps per second."""
        if self._bar is not None:
            self._bar.set_postfix_str(f"loss {loss:.4f}", refresh=False)
            return
        elapsed = time.monotonic() - self._since
        mean = (step - self._start) / elapsed if elapsed > 0 else 0.0
        left = clock((self._total - step) / mean) if mean else "?"
        self.say(f"step {step}/{self._total}  loss {loss:.4f}  {rate:.2f} steps/s  {left} left")

    def say(self, text: str) -> None:
        """A line that does not tear the bar."""
        if self._bar is not None:
            self._bar.write(text, file=self._stream)
        elif not self._quiet:
            print(text, file=self._stream, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def clock(seconds: float) -> str:
    """`1:02:03` or `2:03`."""
    minutes, second = divmod(round(seconds), 60)
    hour, minute = divmod(minutes, 60)
    return f"{hour}:{minute:02d}:{second:02d}" if hour else f"{minute}:{second:02d}"
