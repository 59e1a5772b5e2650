"""The clock of a training: seconds without validation, the curve of quality, the best weights."""

import time
from collections.abc import Callable
from typing import Generic, TypeVar

from benchmarks.peers.exchange import Json

Weights = TypeVar("Weights")
METRIC = "ndcg@10"
PATIENCE = 6  # validations without gain that end a training


def seconds_of(clock: str, threads: int) -> Callable[[], float]:
    """The clock of training seconds.

    wall: elapsed seconds. cpu: processor seconds of this process over its threads, fair where
    other programs share the machine. Raises ValueError for another name.
    """
    if clock == "wall":
        return time.monotonic
    if clock == "cpu":
        return lambda: time.process_time() / threads
    raise ValueError(f"clock={clock!r}: allowed are wall, cpu")


def tell(line: str) -> None:
    """Prints a line of progress."""
    print(line, flush=True)


class Watch(Generic[Weights]):
    """Validates a training `count` times within its budget and keeps its best weights.

    budget: training seconds. evaluate: () -> metrics, `METRIC` among them. snapshot: () -> a
    copy of the weights. now: seconds that pass (`seconds_of`). say: gets a line per validation.
    The clock starts at once; early validations are closer together, so that it can be seen how
    soon a quality is reached.
    """

    def __init__(
        self,
        budget: float,
        count: int,
        *,
        evaluate: Callable[[], dict[str, float]],
        snapshot: Callable[[], Weights],
        now: Callable[[], float] = time.monotonic,
        say: Callable[[str], None] = tell,
        patience: int = PATIENCE,
    ) -> None:
        self.budget, self.evaluate, self.snapshot, self.now = budget, evaluate, snapshot, now
        self.say, self.patience = say, patience
        self.due = [budget * ((i + 1) / count) ** 1.5 for i in range(count)]
        self.curve: list[dict[str, float]] = []
        self.best: Weights | None = None
        self.best_point: dict[str, float] = {}
        self.stopped = ""
        self._begin = now()

    @property
    def seconds(self) -> float:
        """Of training, so far."""
        return self.now() - self._begin

    def tick(self, step: int) -> bool:
        """After each step; validates when it is time. Returns whether training is over."""
        seconds = self.seconds
        if self.stopped or seconds < self.due[0]:
            return bool(self.stopped)
        self.due = [moment for moment in self.due if moment > seconds]
        point = {"step": step, "seconds": seconds, **self.evaluate()}
        self.curve.append(point)
        self.say(f"step {step}, {seconds:.0f} s of training: {METRIC} {point[METRIC]:.5f}")
        if not self.best_point or point[METRIC] > self.best_point[METRIC]:
            self.best_point, self.best = point, self.snapshot()
        since = len(self.curve) - 1 - self.curve.index(self.best_point)
        if not self.due:
            self.stopped = "budget"
        elif since >= self.patience:
            self.stopped = "no gain"
        self._begin += self.seconds - seconds  # validation is no training
        return bool(self.stopped)

    def facts(self) -> Json:
        """For `cell.json`."""
        return {
            "curve": self.curve,
            "best": self.best_point,
            "stopped": self.stopped,
            "budget_seconds": self.budget,
            "train_seconds": self.curve[-1]["seconds"],
        }
