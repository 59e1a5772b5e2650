"""SIGTERM as a request to finish the step, save, and exit with status 0."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType

import jax

from jaxrec.runtime import distributed


class Preempted(Exception):
    """SIGTERM arrived while work could be abandoned at once; not an error."""


class Preemption:
    """While entered, SIGTERM sets `requested` instead of ending the process.

    Inside `interrupting()` it raises Preempted as well: for work that can be repeated (validation,
    data preparation) and may take longer than a preempted machine has left. Signals reach the main
    thread only; entered in another thread it does nothing.

    In a run of several processes no process may abandon collective work alone: there
    `interrupting()` does nothing, and long work calls `poll()` on every process instead.
    """

    def __init__(self) -> None:
        self.requested = False
        self._interrupting = False
        self._previous: Callable[[int, FrameType | None], object] | int | None = None

    def __enter__(self) -> "Preemption":
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGTERM, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)
            self._previous = None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        if self._interrupting:
            self._interrupting = False
            raise Preempted

    def poll(self) -> None:
        """Raises Preempted on every process of a run when SIGTERM reached one of them.

        Every process must call it. A run of one process is interrupted by the signal itself.
        """
        if jax.process_count() > 1 and distributed.any_process(self.requested):
            self.requested = True
            raise Preempted

    @contextlib.contextmanager
    def interrupting(self) -> Iterator[None]:
        """SIGTERM raises Preempted in this block, even if it arrived before the block."""
        if jax.process_count() > 1:
            yield
            return
        if self.requested:
            raise Preempted
        self._interrupting = True
        try:
            yield
        finally:
            self._interrupting = False
