"""Metrics of the steps since the last logged line, fetched without holding up the device."""

import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from jaxrec.errors import NonFiniteError
from jaxrec.training.step import StepMetrics, culprit, is_finite
from jaxrec.types import Params


class ExampleCost(NamedTuple):
    """What one row of a batch costs a step.

    positions: of the row's layout. flops: FLOPs of forward and backward pass.
    """

    positions: int
    flops: float


class StepCost(NamedTuple):
    """What a step costs.

    example: (item slots, segments) of a batch's rows -> cost of a row. peak: FLOP/s of all devices
    together, None where unknown.
    """

    example: Callable[[int, int], ExampleCost]
    peak: float | None


class BatchSize(NamedTuple):
    """A global batch: its rows (examples), input events, item slots and segments of a row."""

    examples: int
    events: int
    slots: int
    segments: int


class _Pending(NamedTuple):
    """A step whose metrics are still on the device."""

    step: int
    metrics: StepMetrics
    size: BatchSize


class Window:
    """Collects the metrics of steps and turns them into one line per `log_every` steps.

    values: scalars of fetched steps that no line has reported yet. They are part of a
    checkpoint, so a line that covers steps before and after a kill is the same to the last bit.
    """

    def __init__(
        self, values: list[dict[str, float]] | None = None, step_cost: StepCost | None = None
    ):
        self.step_cost = step_cost
        self.values: list[dict[str, float]] = list(values or [])
        self._pending: list[_Pending] = []
        self._restart()

    def _restart(self) -> None:
        self._since = time.monotonic()
        self._paused = self._waited = 0.0
        self._steps = self._examples = self._events = self._positions = 0
        self._flops = 0.0

    def add(self, step: int, metrics: StepMetrics, size: BatchSize) -> None:
        """Metrics of `step` (still on the device) and the size of its batch."""
        self._pending.append(_Pending(step, metrics, size))

    def waited(self, seconds: float) -> None:
        """Counts time spent waiting for input."""
        self._waited += seconds

    def paused(self, seconds: float) -> None:
        """Leaves time out of the rates: compilation, validation, saving."""
        self._paused += seconds

    def fetch(self, upto: int, params: Params) -> None:
        """Waits for the steps up to `upto`; raises NonFiniteError at the first bad one."""
        ready = [entry for entry in self._pending if entry.step <= upto]
        self._pending = self._pending[len(ready) :]
        fetched = jax.device_get([entry.metrics for entry in ready])
        for entry, metrics in zip(ready, fetched, strict=True):
            if not is_finite(metrics):
                raise NonFiniteError(
                    f"training stopped at step {entry.step}: {culprit(metrics, params)}. "
                    "Checkpoints of earlier steps are intact; lower train.learning_rate, raise "
                    "train.warmup or set train.grad_clip_norm"
                )
            self.values.append({k: float(v) for k, v in metrics.scalars.items()})
            self._count(entry.size)

    def _count(self, size: BatchSize) -> None:
        self._steps += 1
        self._examples += size.examples
        self._events += size.events
        if self.step_cost is not None:
            cost = self.step_cost.example(size.slots, size.segments)
            self._positions += size.examples * cost.positions
            self._flops += size.examples * cost.flops

    def line(self) -> dict[str, float]:
        """Means over the fetched steps, with rates since the last line; starts a new window."""
        names = self.values[0] if self.values else {}
        means = {f"train/{name}": float(np.mean([v[name] for v in self.values])) for name in names}
        seconds = max(time.monotonic() - self._since - self._paused, 1e-9)
        rates = {
            "steps_per_s": self._steps / seconds,
            "examples_per_s": self._examples / seconds,
            "events_per_s": self._events / seconds,
            "input_wait": min(1.0, self._waited / seconds),
        }
        if self.step_cost is not None:
            rates["tokens_per_s"] = self._positions / seconds
            rates["positions_per_event"] = self._positions / max(self._events, 1)
            rates["flops_per_s"] = self._flops / seconds
            if self.step_cost.peak is not None:
                rates["mfu"] = rates["flops_per_s"] / self.step_cost.peak
        self.values = []
        self._restart()
        return means | rates
