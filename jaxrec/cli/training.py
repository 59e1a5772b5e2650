"""The work of `jaxrec train`: data, model, training, evaluation of the best checkpoint."""

import pathlib
import traceback
from typing import Any

import jax
from jax.sharding import Mesh

from jaxrec.cli import results
from jaxrec.config import Config
from jaxrec.errors import JaxrecError
from jaxrec.evaluation import evaluator
from jaxrec.runtime import compile_cache, distributed, loggers, progress
from jaxrec.runtime import mesh as mesh_lib
from jaxrec.runtime.preemption import Preempted, Preemption
from jaxrec.session import Session
from jaxrec.training.dry_run import dry_run
from jaxrec.training.step_cost import cost_of_a_step


def main(flags: Any) -> int:
    """One process of a run; returns its exit status.

    flags: those of `jaxrec.cli.train`. An error of one of several processes ends the others too.
    """
    place = distributed.place(flags.coordinator, flags.processes, flags.process)
    distributed.start(place, flags.peer_timeout)
    try:
        return run(flags.config, pathlib.Path(flags.workdir), flags.verbose)
    except Exception as error:
        if jax.process_count() == 1:
            raise
        if not isinstance(error, (JaxrecError, OSError, jax.errors.JaxRuntimeError)):
            traceback.print_exc()
        distributed.give_up(error, "jaxrec train")


def run(config: Config, folder: pathlib.Path, verbose: bool = False) -> int:
    """Trains and evaluates; returns the exit status, early after SIGTERM and Ctrl-C."""
    compile_cache.use(config.train.compilation_cache)
    try:
        with Preemption(ctrl_c=True) as preemption:
            train_and_evaluate(config, folder, preemption, verbose)
    except Preempted as stop:
        say(f"stopped by {stop.cause}; the same command continues the run")
        return stop.status
    return 0


def train_and_evaluate(
    config: Config, folder: pathlib.Path, preemption: Preemption, verbose: bool = False
) -> None:
    """Data, model, training, evaluation. Raises Preempted after SIGTERM and Ctrl-C."""
    # The devices. What cannot work is refused before any work.
    mesh = mesh_lib.make_mesh(config.mesh)
    mesh_lib.check_batch_size(mesh, config.train.batch_size, "train.batch_size")
    evaluator.chosen(config)
    loggers.check(config.train.loggers)

    # The data, prepared once, and the model.
    folder.mkdir(parents=True, exist_ok=True)
    with preemption.interrupting():
        session = Session(config, folder, mesh, preemption.poll)
    step_cost = cost_of_a_step(config, session.model, mesh)
    if config.train.dry_run:
        print_dry_run(config, session, mesh)
        return

    session.check_targets()

    # Training, from the last checkpoint in the folder if there is one.
    result = session.fit(preemption=preemption, step_cost=step_cost)
    if result.stopped == "preempted":
        raise preemption.stopped()

    # Evaluation of the best checkpoint on the test split.
    with preemption.interrupting():
        evaluation = results.evaluate(session, say)
    if distributed.leader():
        results.write(evaluation, folder, folder / "results.json", verbose)


def print_dry_run(config: Config, session: Session, mesh: Mesh) -> None:
    """Prints what the training step needs per device, on the largest batch that a run may have."""
    session.config.train.length_buckets = 1  # no batch has longer rows, or more positions
    batch = next(session.train_batches(0))
    step_cost = cost_of_a_step(config, session.model, mesh)
    flops = step_cost.example(session.layout.num_items, session.layout.num_segments).flops
    _, lines = dry_run(config, session.task(fresh=True), batch=batch, mesh=mesh, flops=flops)
    if distributed.leader():
        print("\n".join(lines))


def say(line: str) -> None:
    """Progress, on standard error of the leading process."""
    if distributed.leader():
        progress.say(line)
