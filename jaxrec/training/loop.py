"""The training loop: steps, metrics, validation, checkpoints, exact resume.

Everything that decides what a step computes is a function of (config, seed, step) or is in the
checkpoint, so a run that is killed and started again repeats the uninterrupted run: on CPU its
metrics are the same to the last bit.
"""

import contextlib
import dataclasses
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxrec.config import Config, ConfigError
from jaxrec.runtime import checkpoint, environment
from jaxrec.runtime import mesh as mesh_lib
from jaxrec.runtime import workdir as workdir_lib
from jaxrec.runtime.preemption import Preempted, Preemption
from jaxrec.runtime.progress import Progress
from jaxrec.runtime.writer import VALIDATION, MetricsWriter
from jaxrec.training import optimizer as optimizer_lib
from jaxrec.training import step as step_lib
from jaxrec.training.step import Loss, TrainState
from jaxrec.training.window import Window
from jaxrec.types import Batch, Params

Evaluate = Callable[[Params], Mapping[str, float]]


@dataclasses.dataclass
class Memory:
    """What a run remembers of its validations.

    best, best_step: highest train.metric so far and where; stale: validations since;
    evaluated: step of the last validation.
    """

    best: float | None = None
    best_step: int | None = None
    stale: int = 0
    evaluated: int = 0

    def see(self, step: int, value: float) -> bool:
        """Takes in a validation; returns whether it is the best so far (NaN never is)."""
        self.evaluated = step
        better = value == value and (self.best is None or value > self.best)
        if better:
            self.best, self.best_step, self.stale = value, step, 0
        else:
            self.stale += 1
        return better


class Result(NamedTuple):
    """step: updates done; stopped: `finished`, `early` (patience) or `preempted` (SIGTERM)."""

    step: int
    stopped: str
    best: float | None
    best_step: int | None


def fit(
    config: Config,
    folder: pathlib.Path,
    *,
    init: Callable[[jax.Array], Params],
    loss: Loss,
    batches: Callable[[int], Iterator[Batch]],
    evaluate: Evaluate | None = None,
    item_counts: Any = None,
    mesh: Mesh | None = None,
    preemption: Preemption | None = None,
    digests: Mapping[str, str] | None = None,
) -> Result:
    """Trains until `train.steps`, from the last checkpoint in `folder` where there is one.

    init: parameters from a key. loss: see `Loss`. batches: endless NumPy batches (a process's
    rows) from a step on; batch number N must be a function of N alone. evaluate: validation
    metrics of parameters (the averaged ones with train.ema), `train.metric` among them; it may
    be given up by an exception and called again. item_counts: passed to the loss. digests:
    identify data and vocabulary; a folder of other data or configuration is refused.

    Raises ConfigError, WorkdirError, CheckpointError, NonFiniteError.
    """
    mesh = mesh_lib.make_mesh(config.mesh) if mesh is None else mesh
    mesh_lib.check_batch_size(mesh, config.train.batch_size, "train.batch_size")
    with contextlib.ExitStack() as stack:
        if preemption is None:
            preemption = stack.enter_context(Preemption())
        stack.enter_context(workdir_lib.lock(folder))
        stack.enter_context(jax.set_mesh(mesh))
        changed = workdir_lib.claim(folder, config, digests or {})
        run = _Run(config, folder, mesh, init, loss, evaluate, item_counts, preemption)
        stack.callback(run.close)
        for line in changed:
            run.progress.say(f"changed since the last start: {line}")
        return run.train(batches)


class _Run:
    """The mutable part of `fit`: state on the devices, memory, and where it is reported."""

    def __init__(
        self,
        config: Config,
        folder: pathlib.Path,
        mesh: Mesh,
        init: Callable[[jax.Array], Params],
        loss: Loss,
        evaluate: Evaluate | None,
        item_counts: Any,
        preemption: Preemption,
    ):
        self.config, self.mesh, self.preemption = config, mesh, preemption
        self.evaluate, self.item_counts = evaluate, item_counts
        self.folder = folder / workdir_lib.CHECKPOINTS
        optimizer = optimizer_lib.adamw(config.train)
        self.memory, self.window = Memory(), Window()
        self.state = self._start(
            lambda: step_lib.init_state(init, optimizer, config.train, config.seed)
        )
        self.step = self.saved = int(self.state.step)
        shardings = jax.tree.map(lambda x: x.sharding, self.state)
        self.train_step = step_lib.make_step(
            loss, optimizer, config.train, config.seed, mesh, shardings
        )
        self.compiled = False
        self.line_due: int | None = None  # step whose metrics line waits to be written
        leader = jax.process_index() == 0
        self.progress = Progress(config.train.steps, self.step, quiet=not leader)
        self.writer = MetricsWriter(folder, self.step, self.memory.evaluated) if leader else None
        if leader:
            environment.record(folder, self.step)

    def close(self) -> None:
        self.progress.close()
        if self.writer is not None:
            self.writer.close()

    def _start(self, new: Callable[[], TrainState]) -> TrainState:
        """The restored state, or a new one."""
        like = mesh_lib.abstract(self.mesh, new)
        checkpoint.clean(self.folder)
        restored = checkpoint.restore_latest(self.folder, _trees(like))
        if restored is None:
            return mesh_lib.create(new, like)
        self.memory = Memory(**restored.meta["memory"])
        self.window = Window(restored.meta["window"])
        step = jax.device_put(jnp.int32(restored.step), like.step.sharding)
        return TrainState(step=step, **({"ema": None} | restored.trees))

    def train(self, batches: Callable[[int], Iterator[Batch]]) -> Result:
        """Steps until something stops the run."""
        if self.step:
            self.progress.say(f"continuing from step {self.step}")
        stopped = self._between_steps()
        if not stopped:
            source = batches(self.step)
            try:
                while not stopped:
                    self._one_step(source)
                    stopped = self._between_steps()
            finally:
                close = getattr(source, "close", None)
                if close is not None:
                    close()
        return Result(self.step, stopped, self.memory.best, self.memory.best_step)

    def _one_step(self, source: Iterator[Batch]) -> None:
        start = time.monotonic()
        batch = next(source)
        waited = time.monotonic()
        self.window.waited(waited - start)
        self.state, metrics = self.train_step(
            self.state, mesh_lib.put_batch(self.mesh, batch), self.item_counts
        )
        if not self.compiled:
            self.compiled = True
            self.window.paused(time.monotonic() - start)
        self.step += 1
        examples, processes = len(batch.user), jax.process_count()
        events = int(batch.lengths.sum())
        self.window.add(self.step, metrics, examples * processes, events * processes)
        self.progress.update(self.step)
        # A line is written one step late: its metrics are fetched while the next step runs.
        self._write_line()
        if self.step % self.config.train.log_every == 0 or self.step >= self.config.train.steps:
            self.line_due = self.step

    def _write_line(self) -> None:
        if self.line_due is None:
            return
        self.window.fetch(self.line_due, self.state.params)
        line = self.window.line()
        if self.writer is not None:
            self.writer.write(self.line_due, line)
        self.progress.log(self.line_due, line["train/loss"], line["steps_per_s"])
        self.line_due = None

    def _between_steps(self) -> str:
        """Validates and saves when it is time; returns why the run stops, or nothing."""
        train, memory, step = self.config.train, self.memory, self.step
        last = step >= train.steps
        validate = self.evaluate is not None and step > memory.evaluated
        validate = validate and (last or step % train.eval_every == 0)
        save = step > self.saved and (last or step % train.checkpoint_every == 0)
        early = 0 < train.patience <= memory.stale
        if not (validate or save or last or early or self.preemption.requested):
            return ""
        start = time.monotonic()
        self._write_line()
        self.window.fetch(step, self.state.params)  # nothing that is not finite is saved
        if validate and not self.preemption.requested:
            save |= self._validate()
            validate = memory.evaluated < step
            early = 0 < train.patience <= memory.stale
        if self.preemption.requested and (validate or not (last or early)):
            stopped = "preempted"
        else:
            stopped = "finished" if last else "early" if early else ""
        if save or (stopped and step > self.saved):
            self._save()
        self.window.paused(time.monotonic() - start)
        return stopped

    def _validate(self) -> bool:
        """Returns whether a checkpoint must be written: this one is the best so far."""
        assert self.evaluate is not None
        params = self.state.params if self.state.ema is None else self.state.ema
        try:
            with self.preemption.interrupting():
                values = self.evaluate(params)
        except Preempted:
            return False  # the checkpoint says so: the resumed run validates first
        metric = self.config.train.metric
        if metric not in values:
            raise ConfigError(
                f"train.metric={metric!r}: validation has {', '.join(sorted(values))}"
            )
        better = self.memory.see(self.step, float(values[metric]))
        if self.writer is not None:
            line = {f"{VALIDATION}{k}": float(v) for k, v in values.items()}
            self.writer.write(self.step, line)
        best = (
            "the best so far" if better else f"best {self.memory.best} at {self.memory.best_step}"
        )
        self.progress.say(f"step {self.step}  validation {metric} {values[metric]:.5f}  ({best})")
        return better

    def _save(self) -> None:
        meta = {
            "memory": dataclasses.asdict(self.memory),
            "window": self.window.values,
            "seed": self.config.seed,
        }
        checkpoint.save(
            self.folder, self.step, _trees(self.state), meta, self.memory.best_step, replace=True
        )
        checkpoint.retain(self.folder, self.config.train.keep)
        self.saved = self.step


def _trees(state: TrainState) -> dict[str, Any]:
    """What of a state is stored as arrays, by name."""
    trees = {"params": state.params, "opt_state": state.opt_state}
    return trees if state.ema is None else trees | {"ema": state.ema}
