"""SIGTERM as a request: finish the step, save, exit 0."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any

import jax

from jaxrec.runtime import distributed


class Preempted(Exception):
    """SIGTERM arrived where work can be given up at once; not an error."""


class Preemption:
    """While entered, SIGTERM sets `requested` instead of ending the process.

    Inside `interrupting()` it raises Preempted as well: for work that can be repeated
    (validation, data preparation) and would outlast the time that a preempted machine has.
    Signals reach the main thread only; entered elsewhere it does nothing.

    Of several processes none may leave alone what all have to do together: there
    `interrupting()` does nothing, and long work calls `poll()` on every process instead.
    """

    def __init__(self) -> None:
        self.requested = False
        self._interrupting = False
        self._previous: Any = None

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
        """Raises Preempted on every process of several when SIGTERM reached one of them.

        To be called by all of them; a single process is interrupted by the signal itself.
        """
        if jax.process_count() > 1 and distributed.any_process(self.requested):
            self.requested = True
            raise Preempted

    @contextlib.contextmanager
    def interrupting(self) -> Iterator[None]:
        """SIGTERM raises Preempted in this block, also when it came before it."""
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
