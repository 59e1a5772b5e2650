"""SIGTERM as a request: finish the step, save, exit 0."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any


class Preempted(Exception):
    """SIGTERM arrived where work can be given up at once; not an error."""


class Preemption:
    """While entered, SIGTERM sets `requested` instead of ending the process.

    Inside `interrupting()` it raises Preempted as well: for work that can be repeated
    (validation, data preparation) and would outlast the time that a preempted machine has.
    Signals reach the main thread only; entered elsewhere it does nothing.
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

    @contextlib.contextmanager
    def interrupting(self) -> Iterator[None]:
        """SIGTERM raises Preempted in this block, also when it came before it."""
        if self.requested:
            raise Preempted
        self._interrupting = True
        try:
            yield
        finally:
            self._interrupting = False
