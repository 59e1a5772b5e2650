"""What happens around the steps of a run besides training: log lines, a profiler trace."""

import pathlib
from collections.abc import Callable, Mapping

import jax

from jaxrec.config import TrainConfig
from jaxrec.runtime.metrics_writer import VALIDATION, MetricWriter
from jaxrec.runtime.progress import Progress
from jaxrec.training.step import StepMetrics, TrainState
from jaxrec.training.window import BatchSize, Window
from jaxrec.types import Batch, Params


class Hook:
    """Called around every step; the methods of this class do nothing.

    `fit(..., hooks=[...])` takes more of them. A hook sees values and changes none: what a run
    computes does not depend on its hooks. One that raises ends the run where it is.
    """

    def before_step(self, step: int, state: TrainState) -> None:
        """`step` steps are done, the next one is about to be computed."""

    def after_step(self, step: int, state: TrainState, metrics: StepMetrics) -> None:
        """Step number `step` (1 is the first) was started; its values may not be there yet."""

    def after_validation(self, step: int, values: Mapping[str, float]) -> None:
        """Validation after `step` steps gave these metrics, under their plain names (ndcg@10)."""

    def close(self, state: TrainState) -> None:
        """The run is over, or was ended by an exception."""


class Profiler(Hook):
    """Writes a profiler trace of `train.profile_steps` (A:B is steps A + 1 to B) to a folder."""

    def __init__(self, profile_steps: str, folder: pathlib.Path, say: Callable[[str], None]):
        first, _, last = profile_steps.partition(":")
        self._first, self._last = int(first), int(last)
        self._folder, self._say = folder, say
        self._running = self._done = False

    def before_step(self, step: int, state: TrainState) -> None:
        """Starts the trace where `train.profile_steps` begins, ends it where that ends."""
        if not self._running and not self._done and self._first <= step < self._last:
            jax.profiler.start_trace(str(self._folder))
            self._running = True
        elif self._running and step >= self._last:
            self._stop(state)

    def close(self, state: TrainState) -> None:
        """Ends a trace that is running."""
        if self._running:
            self._stop(state)

    def _stop(self, state: TrainState) -> None:
        jax.block_until_ready(state)
        jax.profiler.stop_trace()
        self._running, self._done = False, True
        self._say(f"profiler trace in {self._folder}")


class MetricsLog:
    """Lines of metrics, to where they are written and to the progress bar.

    A line is written one step late: its metrics are fetched while the next step runs. writer:
    None on all processes but the first.
    """

    def __init__(
        self,
        config: TrainConfig,
        window: Window,
        progress: Progress,
        writer: MetricWriter | None,
    ):
        self.window, self.progress = window, progress
        self._config, self._writer = config, writer
        self._due: int | None = None  # step whose line waits to be written

    def add(self, step: int, metrics: StepMetrics, batch: Batch, params: Params) -> None:
        """The metrics of a step that was just started, `batch` being this process's rows."""
        processes = jax.process_count()
        size = BatchSize(
            examples=len(batch.user) * processes,
            events=int(batch.lengths.sum()) * processes,
            slots=batch.items.shape[1] - 1,
            segments=batch.lengths.shape[1],
        )
        self.window.add(step, metrics, size)
        self.progress.update(step)
        self.write_due(params)
        if step % self._config.log_every == 0 or step >= self._config.steps:
            self._due = step

    def write_due(self, params: Params) -> None:
        """Writes the line that waits. Raises NonFiniteError."""
        if self._due is None:
            return
        self.window.fetch(self._due, params)
        line = self.window.line()
        if self._writer is not None:
            self._writer.write(self._due, line)
        self.progress.log(self._due, line["train/loss"], line["steps_per_s"])
        self._due = None

    def flush(self, step: int, params: Params) -> None:
        """Waits for all steps up to `step`. Raises NonFiniteError at the first bad one."""
        self.write_due(params)
        self.window.fetch(step, params)

    def write_validation(self, step: int, values: Mapping[str, float]) -> None:
        """Writes validation metrics of a step."""
        if self._writer is not None:
            self._writer.write(step, {f"{VALIDATION}{k}": float(v) for k, v in values.items()})

    def close(self, finished: bool) -> None:
        """Ends the progress bar and the writer. finished: as in `MetricWriter.close`."""
        self.progress.close()
        if self._writer is not None:
            self._writer.close(finished)
