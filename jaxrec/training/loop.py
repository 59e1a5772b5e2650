"""The training loop: steps, metrics, validation, checkpoints, exact resume.

Everything that decides what a step computes is a function of (config, seed, step) or is in the
checkpoint, so a run that is killed and started again repeats the uninterrupted run: on CPU its
metrics are the same to the last bit.
"""

import contextlib
import dataclasses
import pathlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple, TypeAlias

import jax
from jax.sharding import Mesh
from jax.stages import Wrapped

from jaxrec.config import Config
from jaxrec.items import hashed
from jaxrec.nn.item_tower import without_tower
from jaxrec.runtime import distributed, environment, loggers, workdir
from jaxrec.runtime import mesh as mesh_lib
from jaxrec.runtime.metrics_writer import DAMAGED, JsonLines
from jaxrec.runtime.preemption import Preempted, Preemption
from jaxrec.runtime.progress import Progress
from jaxrec.training import resume
from jaxrec.training import step as step_lib
from jaxrec.training.hooks import Hook, MetricsLog, Profiler
from jaxrec.training.resume import Resumed
from jaxrec.training.step import TrainState
from jaxrec.training.task import DataIdentity, Task
from jaxrec.training.validation import Evaluate, ValidationState, metric_of
from jaxrec.training.window import StepCost, Window
from jaxrec.types import Batch, Tree

# why a run stops: at train.steps, by train.patience, by SIGTERM
Stopped: TypeAlias = Literal["finished", "early", "preempted"]


class Result(NamedTuple):
    """step: updates done; best, best_step: highest `train.metric` and where, None if unknown."""

    step: int
    stopped: Stopped
    best: float | None
    best_step: int | None


def fit(
    config: Config,
    folder: pathlib.Path,
    task: Task,
    *,
    batches: Callable[[int], Iterator[Batch]],
    evaluate: Evaluate | None = None,
    identity: DataIdentity | None = None,
    mesh: Mesh | None = None,
    preemption: Preemption | None = None,
    step_cost: StepCost | None = None,
    hooks: Sequence[Hook] = (),
) -> Result:
    """Trains until `train.steps`, from the last checkpoint in `folder` if there is one.

    batches: step -> endless NumPy batches (a process's rows) from that step on; batch number N must
    be a function of N alone. evaluate: parameters (the averaged ones with train.ema) -> validation
    metrics, `train.metric` among them; it may be interrupted by an exception and called again.
    identity: of the data; a folder of other data or another configuration is refused. mesh:
    default `config.mesh`. step_cost: for the logged rates. With `task.texts` the item table is
    encoded again before every validation.

    With several processes (`runtime.distributed`) all make the same call, on one folder that all
    of them see: the first writes logs, all write their shards of a checkpoint, and SIGTERM to one
    of them makes all save the same step.

    Raises ConfigError, WorkdirError, CheckpointError, LoggerError, NonFiniteError; PeerError where
    process 0 failed to claim the folder.
    """
    mesh = mesh_lib.make_mesh(config.mesh) if mesh is None else mesh
    mesh_lib.check_batch_size(mesh, config.train.batch_size, "train.batch_size")
    microbatch = config.train.batch_size // config.train.grad_accum_steps
    mesh_lib.check_batch_size(mesh, microbatch, "train.batch_size / train.grad_accum_steps")
    identity = identity or DataIdentity()
    with contextlib.ExitStack() as stack:
        if preemption is None:
            preemption = stack.enter_context(Preemption())
        claim = _claim(folder, config, identity, stack)
        stack.enter_context(jax.set_mesh(mesh))
        grown = distributed.any_process(claim.grown)
        heights = {
            hashed.height(config.model, ancestor.items) for ancestor in identity.ancestors if grown
        }
        assembled = step_lib.assemble(config, task, mesh)
        checkpoints = folder / workdir.CHECKPOINTS
        start = resume.resume(checkpoints, assembled, mesh=mesh, heights=heights)
        log = _open_log(config, folder, start, step_cost)
        run = _Run(
            config=config,
            checkpoints=checkpoints,
            mesh=mesh,
            task=task,
            train_step=assembled.step,
            evaluate=evaluate,
            preemption=preemption,
            log=log,
            hooks=[*_profiler(config, folder, log.progress.say), *hooks],
            state=start.state,
            validation=start.validation,
        )
        stack.callback(run.close)
        if start.new_rows is not None:
            run.save()
            log.progress.say(f"data was appended to: {start.new_rows} new rows, all else continues")
        if grown:  # the checkpoint fits the new data: only now the folder may say so
            distributed.leader_first(lambda: workdir.adopt(folder, config, identity.digests))
        if jax.process_index() == 0:
            identity.on_claim()
        for line in claim.changed:
            log.progress.say(f"changed since the last start: {line}")
        return run.train(batches)


def _claim(
    folder: pathlib.Path, config: Config, identity: DataIdentity, stack: contextlib.ExitStack
) -> workdir.Claim:
    """Locks the folder until `stack` closes and claims it, on the first process alone.

    The other processes get an empty claim. Raises WorkdirError, PeerError.
    """
    claim = workdir.Claim([])

    def lock_and_claim() -> None:
        nonlocal claim
        stack.enter_context(workdir.lock(folder))
        claim = workdir.claim(folder, config, identity.digests, identity.ancestors)

    distributed.leader_first(lock_and_claim)
    return claim


def _open_log(
    config: Config, folder: pathlib.Path, start: Resumed, step_cost: StepCost | None
) -> MetricsLog:
    """The run's log; the first process alone writes it and records the environment."""
    leader, step = distributed.leader(), int(start.state.step)
    progress = Progress(config.train.steps, step, quiet=not leader)
    writer = None
    if leader:
        environment.record(folder, step)
        record = JsonLines(folder, step, start.validation.evaluated)
        if record.damaged:
            progress.say(
                f"{record.damaged} lines of {workdir.METRICS} cannot be read and were moved to "
                f"{workdir.METRICS}{DAMAGED}; the run continues"
            )
        writer = loggers.open_writer(config, folder, record, start=step, say=progress.say)
    return MetricsLog(config.train, Window(start.values, step_cost), progress, writer)


def _profiler(config: Config, folder: pathlib.Path, say: Callable[[str], None]) -> list[Hook]:
    steps = config.train.profile_steps
    if not steps or not distributed.leader():
        return []
    return [Profiler(steps, folder / "profile", say)]


@dataclasses.dataclass(kw_only=True)
class _Run:
    """The mutable part of `fit`: the state on the devices, and how far the run has come.

    step: updates done. saved: step of the latest checkpoint. vote: tells all of several processes
    about SIGTERM at the same step; None in a run of one. compiled: (rows, item slots + 1,
    segments) of batches that a step has run on. finished: whether nothing is left to train.
    """

    config: Config
    checkpoints: pathlib.Path
    mesh: Mesh
    task: Task
    train_step: Wrapped
    evaluate: Evaluate | None
    preemption: Preemption
    log: MetricsLog
    hooks: list[Hook]
    state: TrainState
    validation: ValidationState

    def __post_init__(self) -> None:
        self.step = self.saved = int(self.state.step)
        self.vote = distributed.Vote(self.mesh) if jax.process_count() > 1 else None
        self.compiled: set[tuple[int, ...]] = set()
        self.finished = False

    def close(self) -> None:
        """Ends hooks and logs; after an exception too."""
        for hook in self.hooks:
            hook.close(self.state)
        self.log.close(self.finished)

    def train(self, batches: Callable[[int], Iterator[Batch]]) -> Result:
        """Runs steps until something stops the run."""
        if self.step:
            self.log.progress.say(f"continuing from step {self.step}")
        stopped = self._between_steps()
        if stopped is None:
            source = batches(self.step)
            try:
                while stopped is None:
                    self._one_step(source)
                    stopped = self._between_steps()
            finally:
                close = getattr(source, "close", None)
                if close is not None:
                    close()
        self.finished = stopped != "preempted"
        return Result(self.step, stopped, self.validation.best, self.validation.best_step)

    def _one_step(self, source: Iterator[Batch]) -> None:
        for hook in self.hooks:
            hook.before_step(self.step, self.state)
        start = time.monotonic()
        batch = next(source)
        self.log.window.waited(time.monotonic() - start)
        shape = *batch.items.shape, batch.lengths.shape[1]
        compiles, first = shape not in self.compiled, not self.compiled
        if first:  # a minute of silence otherwise
            self.log.progress.say("compiling the training step ...")
        if compiles and not first:  # steps still under way are no part of the pause
            jax.block_until_ready(self.state)
            start = time.monotonic()
        texts = self.task.texts
        placed: Tree = (
            mesh_lib.put_batch(self.mesh, batch) if texts is None else texts.put(self.step, batch)
        )
        self.state, metrics = self.train_step(self.state, placed, self.task.sampling)
        if compiles:  # the first step on batches of a size is slow: no part of a rate
            jax.block_until_ready(metrics)
            self.compiled.add(shape)
            seconds = time.monotonic() - start
            self.log.window.paused(seconds)
            if first:
                self.log.progress.start(self.step + 1)
            size = f"{shape[0]} rows of {shape[1] - 1} item slots"
            which = "first step" if first else f"first step on {size}"
            self.log.progress.say(f"{which} (compilation) took {seconds:.1f} s")
        self.step += 1
        self.log.add(self.step, metrics, batch, self.state.params)
        for hook in self.hooks:
            hook.after_step(self.step, self.state, metrics)

    def _between_steps(self) -> Stopped | None:
        """Validates and saves when it is time; returns why the run stops, None: it goes on."""
        train, step = self.config.train, self.step
        last = step >= train.steps
        due = self.evaluate is not None and self.validation.due(
            step, every=train.eval_every, last=last
        )
        save = step > self.saved and (last or step % train.checkpoint_every == 0)
        early = self.validation.exhausted(train.patience)
        preempted = self._preemption_requested()
        if not (due or save or last or early or preempted):
            return None
        self.log.flush(step, self.state.params)  # nothing that is not finite is saved
        start = time.monotonic()  # steps still under way until here are no part of the pause
        if due and not preempted:
            save |= self._validate()
            due = self.validation.evaluated < step
            early = self.validation.exhausted(train.patience)
            preempted = distributed.any_process(self.preemption.requested)
        stopped: Stopped | None = "finished" if last else "early" if early else None
        if preempted and (due or stopped is None):  # due: SIGTERM cut the validation short
            stopped = "preempted"
        if save or (stopped and step > self.saved):
            self.save()
        self.log.window.paused(time.monotonic() - start)
        return stopped

    def _preemption_requested(self) -> bool:
        """Whether SIGTERM arrived; of several processes all learn of it at the same step."""
        requested = self.preemption.requested
        return requested if self.vote is None else self.vote(requested)

    def _validate(self) -> bool:
        """Validates; returns whether these parameters are the best so far, so must be saved."""
        assert self.evaluate is not None
        params = self.state.params if self.state.ema is None else self.state.ema
        try:
            with self.preemption.interrupting():
                if self.task.texts is not None:
                    params = self.task.texts.refresh(params)
                    field = "params" if self.state.ema is None else "ema"
                    evaluated: Tree = {field: params}
                    self.state = self.state._replace(**evaluated)
                values = self.evaluate(without_tower(params))
        except Preempted:
            return False  # the checkpoint says so: the resumed run validates first
        metric = self.config.train.metric
        value = metric_of(values, metric)
        better = self.validation.record(self.step, value)
        self.log.write_validation(self.step, values)
        best = self.validation.best
        known = "none yet" if best is None else f"{best:.5f} at {self.validation.best_step}"
        known = "the best so far" if better else f"best: {known}"
        self.log.progress.say(f"step {self.step}  validation {metric} {value:.5f}  ({known})")
        for hook in self.hooks:
            hook.after_validation(self.step, values)
        return better

    def save(self) -> None:
        """Writes a checkpoint of this step."""
        resume.save(
            self.checkpoints,
            self.step,
            self.state,
            validation=self.validation,
            values=self.log.window.values,
            seed=self.config.seed,
            keep=self.config.train.keep,
        )
        self.saved = self.step
