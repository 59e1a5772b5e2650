"""Metrics of the steps since the last logged line, fetched without holding up the device."""

import time
from typing import NamedTuple

import jax
import numpy as np

from jaxrec.errors import NonFiniteError
from jaxrec.training.step import StepMetrics, culprit, is_finite
from jaxrec.types import Params


class StepCost(NamedTuple):
    """What one example costs a step.

    positions: of the layout. flops: FLOPs of forward and backward pass. peak: FLOP/s of all
    devices together, None where unknown.
    """

    positions: int
    flops: float
    peak: float | None


class _Pending(NamedTuple):
    """A step whose metrics are still on the device; examples, events: of its batch."""

    step: int
    metrics: StepMetrics
    examples: int
    events: int


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
        self._steps = self._examples = self._events = 0

    def add(self, step: int, metrics: StepMetrics, *, examples: int, events: int) -> None:
        """Metrics of `step` (still on the device), users and input events of its batch."""
        self._pending.append(_Pending(step, metrics, examples, events))

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
            self._steps += 1
            self._examples += entry.examples
            self._events += entry.events

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
            positions, flops, peak = self.step_cost
            rates["tokens_per_s"] = positions * rates["examples_per_s"]
            rates["flops_per_s"] = flops * rates["examples_per_s"]
            if peak is not None:
                rates["mfu"] = rates["flops_per_s"] / peak
        self.values = []
        self._restart()
        return means | rates
