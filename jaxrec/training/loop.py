"""The training loop: steps, metrics, validation, checkpoints, exact resume.

Everything that decides what a step computes is a function of (config, seed, step) or is in the
checkpoint, so a run that is killed and started again repeats the uninterrupted run: on CPU its
metrics are the same to the last bit.
"""

import contextlib
import dataclasses
import functools
import pathlib
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from jaxrec.config import Config
from jaxrec.errors import ConfigError
from jaxrec.items import hashed
from jaxrec.nn.item_tower import TOWER
from jaxrec.runtime import checkpoint, distributed, environment
from jaxrec.runtime import mesh as mesh_lib
from jaxrec.runtime import workdir as workdir_lib
from jaxrec.runtime.preemption import Preempted, Preemption
from jaxrec.runtime.progress import Progress
from jaxrec.runtime.writer import VALIDATION, MetricsWriter
from jaxrec.training import growth
from jaxrec.training import step as step_lib
from jaxrec.training.step import Loss, TrainState
from jaxrec.training.text_step import TextItems
from jaxrec.training.window import Window, Work
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
    negatives: Callable[[jax.Array, Any], Any] | None = None,
    work: Work | None = None,
    mesh: Mesh | None = None,
    preemption: Preemption | None = None,
    digests: Mapping[str, str] | None = None,
    ancestors: Sequence[workdir_lib.Ancestor] = (),
    claimed: Callable[[], None] | None = None,
    texts: TextItems | None = None,
) -> Result:
    """Trains until `train.steps`, from the last checkpoint in `folder` where there is one.

    init: parameters from a key. loss: see `Loss`. batches: endless NumPy batches (a process's
    rows) from a step on; batch number N must be a function of N alone. evaluate: validation
    metrics of parameters (the averaged ones with train.ema), `train.metric` among them; it may
    be given up by an exception and called again. item_counts: passed to the loss. negatives:
    needed by train.table_update other than adamw, see `make_table_step`. work: of one
    example, for rates. digests: identify data and vocabulary; a folder of other data or
    configuration is refused. ancestors: data that this one was appended to, which a run may go
    on from (train.continue_on_new_data). claimed: called on the leading process once the folder
    is known to be this run's, for what has to lie in it beside the checkpoints. texts: where an
    item tower is trained; the item table is made anew before every validation.

    Several processes (`runtime.distributed`) call it alike, on one folder that all of them see:
    the first writes logs, all write their parts of a checkpoint, and SIGTERM to one of them
    makes all save the same step.

    Raises ConfigError, WorkdirError, CheckpointError, NonFiniteError; PeerError where process 0
    failed to take the folder.
    """
    mesh = mesh_lib.make_mesh(config.mesh) if mesh is None else mesh
    mesh_lib.check_batch_size(mesh, config.train.batch_size, "train.batch_size")
    part = config.train.batch_size // config.train.grad_accum_steps
    mesh_lib.check_batch_size(mesh, part, "train.batch_size / train.grad_accum_steps")
    with contextlib.ExitStack() as stack:
        if preemption is None:
            preemption = stack.enter_context(Preemption())
        claim = workdir_lib.Claim([])

        def take() -> None:
            nonlocal claim
            stack.enter_context(workdir_lib.lock(folder))
            claim = workdir_lib.claim(folder, config, digests or {}, ancestors)

        distributed.leader_first(take)
        stack.enter_context(jax.set_mesh(mesh))
        grown = distributed.any_process(claim.grown)
        heights = {hashed.height(config.model, a.items) for a in ancestors} if grown else set()
        run = _Run(
            config,
            folder,
            mesh,
            init,
            loss,
            negatives,
            evaluate,
            item_counts,
            preemption,
            work,
            heights,
            texts,
        )
        stack.callback(run.close)
        if grown:  # the checkpoint fits the new data: only now the folder may say so
            distributed.leader_first(lambda: workdir_lib.adopt(folder, config, digests or {}))
        if claimed is not None and jax.process_index() == 0:
            claimed()
        for line in claim.changed:
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
        negatives: Callable[[jax.Array, Any], Any] | None,
        evaluate: Evaluate | None,
        item_counts: Any,
        preemption: Preemption,
        work: Work | None,
        heights: Collection[int] = (),
        texts: TextItems | None = None,
    ):
        self.config, self.mesh, self.preemption = config, mesh, preemption
        self.evaluate, self.item_counts, self.texts = evaluate, item_counts, texts
        self.folder = folder / workdir_lib.CHECKPOINTS
        tower = None if texts is None else texts.tower
        parts = step_lib.assemble(config, init, loss, negatives, mesh, tower)
        self.train_step = parts.step
        self.memory, self.window = Memory(), Window(work=work)
        self.state, added = self._start(parts.new, parts.like, heights)
        self.step = self.saved = int(self.state.step)
        if added is not None:
            self._save()
        first, _, last = config.train.profile_steps.partition(":")
        self.profiled = (int(first), int(last)) if last else None
        self.profiling = False
        self.vote = distributed.Vote(mesh) if jax.process_count() > 1 else None
        self.compiled = False
        self.line_due: int | None = None  # step whose metrics line waits to be written
        leader = distributed.leader()
        self.progress = Progress(config.train.steps, self.step, quiet=not leader)
        self.writer = MetricsWriter(folder, self.step, self.memory.evaluated) if leader else None
        if leader:
            environment.record(folder, self.step)
        if added is not None:
            self.progress.say(f"data was appended to: {added} new rows, all else continues")

    def close(self) -> None:
        if self.profiling:
            self._end_profile()
        self.progress.close()
        if self.writer is not None:
            self.writer.close()

    def _start(
        self, new: Callable[[], TrainState], like: TrainState, heights: Collection[int]
    ) -> tuple[TrainState, int | None]:
        """The restored state, or a new one; how many items a restored one got new rows for.

        heights: rows of the tables before data was appended; empty: it was not, None is returned.
        """
        distributed.leader_first(lambda: checkpoint.clean(self.folder))
        wanted = _trees(like)
        adapt = functools.partial(growth.as_stored, heights=heights, mesh=self.mesh)
        restored = checkpoint.restore_latest(self.folder, wanted, adapt if heights else None)
        if restored is None:
            return mesh_lib.create(new, like), None
        trees, added = restored.trees, None
        self.memory = Memory(**restored.meta["memory"])
        if heights:
            added = growth.new_rows(trees, wanted)
            if added:
                trees = growth.grow(trees, lambda: _trees(new()), wanted)
            # validations on other users and targets are no measure for those to come
            self.memory = Memory(evaluated=self.memory.evaluated)
        self.window = Window(restored.meta["window"], self.window.work)
        step = jax.device_put(np.int32(restored.step), like.step.sharding)
        return TrainState(step=step, **_state(trees)), added

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

    def _profile(self) -> None:
        """Starts or ends the profiler's trace of `train.profile_steps`, on the first process."""
        if self.profiled is None or not distributed.leader():
            return
        first, last = self.profiled
        if not self.profiling and first <= self.step < last:
            jax.profiler.start_trace(str(self.folder.parent / "profile"))
            self.profiling = True
        elif self.profiling and self.step >= last:
            self._end_profile()

    def _end_profile(self) -> None:
        jax.block_until_ready(self.state)
        jax.profiler.stop_trace()
        self.profiling, self.profiled = False, None
        self.progress.say(f"profiler trace in {self.folder.parent / 'profile'}")

    def _one_step(self, source: Iterator[Batch]) -> None:
        self._profile()
        start = time.monotonic()
        batch = next(source)
        waited = time.monotonic()
        self.window.waited(waited - start)
        placed: Any = (
            mesh_lib.put_batch(self.mesh, batch)
            if self.texts is None
            else self.texts.put(self.step, batch)
        )
        self.state, metrics = self.train_step(self.state, placed, self.item_counts)
        if not self.compiled:  # the first step is slow: no part of a rate
            jax.block_until_ready(metrics)
            self.compiled, seconds = True, time.monotonic() - start
            self.window.paused(seconds)
            self.progress.start(self.step + 1)
            self.progress.say(f"first step (compilation) took {seconds:.1f} s")
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
        requested = self._asked_to_stop()
        if not (validate or save or last or early or requested):
            return ""
        self._write_line()
        self.window.fetch(step, self.state.params)  # nothing that is not finite is saved
        start = time.monotonic()  # steps still under way until here are no part of the pause
        if validate and not requested:
            save |= self._validate()
            validate = memory.evaluated < step
            early = 0 < train.patience <= memory.stale
            requested = distributed.any_process(self.preemption.requested)
        if requested and (validate or not (last or early)):
            stopped = "preempted"
        else:
            stopped = "finished" if last else "early" if early else ""
        if save or (stopped and step > self.saved):
            self._save()
        self.window.paused(time.monotonic() - start)
        return stopped

    def _asked_to_stop(self) -> bool:
        """Whether SIGTERM arrived; of several processes all hear of it at the same step."""
        if self.vote is None:
            return self.preemption.requested
        return self.vote(self.preemption.requested)

    def _validate(self) -> bool:
        """Returns whether a checkpoint must be written: this one is the best so far."""
        assert self.evaluate is not None
        which = "params" if self.state.ema is None else "ema"
        params = getattr(self.state, which)
        try:
            with self.preemption.interrupting():
                if self.texts is not None:
                    params = self.texts.refresh(params)
                    self.state = self.state._replace(**{which: params})
                values = self.evaluate({k: v for k, v in params.items() if k != TOWER})
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
    """What of a state is stored as arrays, by name; item towers apart, nobody serves with them."""
    trees = {"params": state.params, "opt_state": state.opt_state}
    trees |= {} if state.ema is None else {"ema": state.ema}
    towers = {n: tree[TOWER] for n, tree in trees.items() if n != "opt_state" and TOWER in tree}
    for name, tower in towers.items():
        trees[name] = {k: v for k, v in trees[name].items() if k != TOWER}
        trees[f"{name}_{TOWER}"] = tower
    return trees


def _state(trees: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `_trees`: fields of a state."""
    fields: dict[str, Any] = {"ema": None} | {n: t for n, t in trees.items() if TOWER not in n}
    for name in ("params", "ema"):
        if f"{name}_{TOWER}" in trees:
            fields[name] = {**fields[name], TOWER: trees[f"{name}_{TOWER}"]}
    return fields
