"""The validations of a run: the best so far, and how many since brought nothing better."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import TypeAlias

from jaxrec.errors import ConfigError
from jaxrec.types import Params

Evaluate: TypeAlias = Callable[[Params], Mapping[str, float]]  # parameters -> metrics


@dataclasses.dataclass
class ValidationState:
    """The validations of a run so far; part of a checkpoint.

    best, best_step: highest train.metric so far and where; stale: validations since;
    evaluated: step of the last validation.
    """

    best: float | None = None
    best_step: int | None = None
    stale: int = 0
    evaluated: int = 0

    def record(self, step: int, value: float) -> bool:
        """Records a validation; returns whether it is the best so far (NaN never is)."""
        self.evaluated = step
        better = value == value and (self.best is None or value > self.best)
        if better:
            self.best, self.best_step, self.stale = value, step, 0
        else:
            self.stale += 1
        return better

    def due(self, step: int, *, every: int, last: bool) -> bool:
        """Whether `step` is to be validated and is not yet."""
        return step > self.evaluated and (last or step % every == 0)

    def exhausted(self, patience: int) -> bool:
        """Whether `patience` validations (0: never) brought nothing better."""
        return 0 < patience <= self.stale


def metric_of(values: Mapping[str, float], metric: str) -> float:
    """The value of train.metric. Raises ConfigError naming the metrics that there are."""
    if metric not in values:
        raise ConfigError(f"train.metric={metric!r}: validation has {', '.join(sorted(values))}")
    return float(values[metric])
