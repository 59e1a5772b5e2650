"""SIGTERM and Ctrl-C as requests to finish the step, save and exit.

After SIGTERM, which schedulers send, a saved run exits with status 0. After Ctrl-C it exits with
130, as a program that was interrupted does, so that a script does not go on behind it.
"""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType

import jax

from jaxrec.runtime import distributed, progress
from jaxrec.runtime.program import INTERRUPTED


class Preempted(Exception):
    """A request to stop, honoured; not an error.

    cause: SIGTERM or Ctrl-C. status: with which the program should exit.
    """

    def __init__(self, number: int = signal.SIGTERM) -> None:
        by_hand = number == signal.SIGINT
        self.cause = "Ctrl-C" if by_hand else "SIGTERM"
        self.status = INTERRUPTED if by_hand else 0
        super().__init__(f"stopped by {self.cause}")


class Preemption:
    """While entered, SIGTERM sets `requested` instead of ending the process.

    ctrl_c: Ctrl-C does so too, once; a second one raises KeyboardInterrupt.

    Inside `interrupting()` it raises Preempted as well: for work that can be repeated (validation,
    data preparation) and may take longer than a preempted machine has left. Signals reach the main
    thread only; entered in another thread it does nothing.

    In a run of several processes no process may abandon collective work alone: there
    `interrupting()` does nothing, and long work calls `poll()` on every process instead.
    """

    def __init__(self, *, ctrl_c: bool = False) -> None:
        self.requested = False
        self._signals = (signal.SIGTERM, signal.SIGINT) if ctrl_c else (signal.SIGTERM,)
        self._number: int = signal.SIGTERM  # the signal that arrived
        self._interrupting = False
        self._previous: dict[int, Callable[[int, FrameType | None], object] | int | None] = {}

    def __enter__(self) -> "Preemption":
        if threading.current_thread() is threading.main_thread():
            for number in self._signals:
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, previous in self._previous.items():
            # None: a handler that is not Python's
            signal.signal(number, signal.SIG_DFL if previous is None else previous)
        self._previous.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._number == number and self.requested:
            raise KeyboardInterrupt
        self.requested, self._number = True, number
        if self._interrupting:
            self._interrupting = False
            raise self.stopped()
        if number == signal.SIGINT:
            progress.say("\nCtrl-C: saving behind this step; press it again to stop at once")

    @property
    def received(self) -> int | None:
        """The signal that arrived; None before."""
        return self._number if self.requested else None

    def stopped(self) -> Preempted:
        """The exception of the signal that arrived; SIGTERM where it reached another process."""
        return Preempted(self._number)

    def poll(self) -> None:
        """Raises Preempted on every process of a run when a signal reached one of them.

        Every process must call it. A run of one process is interrupted by the signal itself.
        """
        if jax.process_count() > 1 and distributed.any_process(self.requested):
            self.requested = True
            raise self.stopped()

    @contextlib.contextmanager
    def interrupting(self) -> Iterator[None]:
        """The signal raises Preempted in this block, even if it arrived before the block."""
        if jax.process_count() > 1:
            yield
            return
        if self.requested:
            raise self.stopped()
        self._interrupting = True
        try:
            yield
        finally:
            self._interrupting = False
