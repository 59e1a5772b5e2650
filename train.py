"""Trains a sequential recommender, evaluates it, prints what compression saves.

    python train.py --config=configs/quickstart.py --workdir=runs/quickstart

prepares the data, trains (progress on standard error), keeps the best and the latest
checkpoints, evaluates the best one and prints the table. The same command continues a killed
run with the same data order, schedule and random state.

  --config=FILE[:ARGUMENT]  a recipe of configs/; its docstring says what ARGUMENT may be
  --config.KEY=VALUE        another value for one of the keys below
  --workdir=FOLDER          where the run lives: data, checkpoints, metrics.jsonl, results.json

SIGTERM saves and exits 0. JAX_PLATFORMS=cpu, cuda or tpu picks the devices.

Several machines: the same command on each, on a folder that all of them see, with

  --coordinator=HOST:PORT --processes=N --process=I
                            address of process 0, how many there are, which one this is (or
                            $JAXREC_COORDINATOR, $JAXREC_PROCESSES, $JAXREC_PROCESS)
  --coordinator=auto        ask the cluster; the default under Slurm and on TPU pods
  --peer_timeout=SECONDS    a process that is silent for so long ends the run (default 100)
"""

from jaxrec.cli import flags

if __name__ == "__main__":
    flags.help_if_asked(__doc__)  # before jax is imported, which takes seconds

import functools
import json
import pathlib
import sys
import traceback
from typing import Any

import jax
from absl import flags as absl_flags
from jax.sharding import Mesh

from jaxrec.config import Config
from jaxrec.data import splits
from jaxrec.errors import ConfigError, JaxrecError
from jaxrec.evaluation import evaluator, rendering
from jaxrec.model import cost
from jaxrec.model.recommender import Model
from jaxrec.runtime import chips, distributed, workdir
from jaxrec.runtime import mesh as mesh_lib
from jaxrec.runtime.preemption import Preempted, Preemption
from jaxrec.session import Session
from jaxrec.training.dry_run import dry_run
from jaxrec.training.window import ExampleCost, StepCost

absl_flags.DEFINE_string("coordinator", "", "HOST:PORT of process 0, auto or none")
absl_flags.DEFINE_integer("processes", None, "number of processes")
absl_flags.DEFINE_integer("process", None, "which of them this is")
absl_flags.DEFINE_integer("peer_timeout", 100, "seconds", lower_bound=1)


def main(flags: Any) -> None:
    """One process of a run. Errors of one of several processes end the others too."""
    place = distributed.place(flags.coordinator, flags.processes, flags.process)
    distributed.start(place, flags.peer_timeout)
    try:
        run(flags.config, pathlib.Path(flags.workdir))
    except Exception as error:
        if jax.process_count() == 1:
            raise
        if not isinstance(error, (JaxrecError, OSError, jax.errors.JaxRuntimeError)):
            traceback.print_exc()
        distributed.give_up(error, "train.py")


def run(config: Config, folder: pathlib.Path) -> None:
    """Trains and evaluates; returns early after SIGTERM."""
    if config.train.compilation_cache:
        jax.config.update("jax_compilation_cache_dir", config.train.compilation_cache)
    try:
        with Preemption() as preemption:
            train_and_evaluate(config, folder, preemption)
    except Preempted:
        print("stopped by SIGTERM; the same command continues the run", file=sys.stderr)


def train_and_evaluate(config: Config, folder: pathlib.Path, preemption: Preemption) -> None:
    """Data, model, training, evaluation. Raises Preempted after SIGTERM."""
    # The devices. What cannot work is refused before any work.
    mesh = mesh_lib.make_mesh(config.mesh)
    mesh_lib.check_batch_size(mesh, config.train.batch_size, "train.batch_size")
    evaluator.chosen(config)

    # The data, prepared once, and the model.
    folder.mkdir(parents=True, exist_ok=True)
    with preemption.interrupting():
        session = Session(config, folder, mesh, preemption.poll)
    step_cost = cost_of_a_step(config, session.model, mesh)
    if config.train.dry_run:
        print_dry_run(config, session, mesh)
        return

    check_targets(session)

    # Training, from the last checkpoint in the folder if there is one.
    result = session.fit(preemption=preemption, step_cost=step_cost)
    if result.stopped == "preempted":
        raise Preempted

    # Evaluation of the best checkpoint on the test split.
    with preemption.interrupting():
        report = session.evaluate(say)
    if distributed.leader():
        workdir.write_text(folder / "results.json", json.dumps(report, indent=2) + "\n")
        print(rendering.format_table(report))


def check_targets(session: Session) -> None:
    """Raises ConfigError where no user has a target: evaluation would find out after training."""
    prepared = session.prepared
    for split in dict.fromkeys(("validation", session.config.eval.split)):
        first, stop = splits.target_range(prepared.boundaries, prepared.lengths, split)
        if not (first < stop).any():
            raise ConfigError(
                f"{prepared.folder}: no user has a target for {split}. Lower data.holdout, choose "
                "another data.split or give more events of each user"
            )


def cost_of_a_step(config: Config, model: Model, mesh: Mesh) -> StepCost:
    """What an example costs, for the rates that are logged."""

    @functools.cache
    def example(slots: int) -> ExampleCost:
        layout = model.layout.shortened(slots)
        flops = cost.training_flops(config.model, config.loss, layout, model.num_items)
        return ExampleCost(layout.length, flops)

    peak = chips.peak_flops(mesh.devices.flat[0])
    return StepCost(example, None if peak is None else peak * mesh.size)


def print_dry_run(config: Config, session: Session, mesh: Mesh) -> None:
    """Prints what the training step needs per device, on the largest batch that a run may have."""
    session.config.train.length_buckets = 1  # no batch has longer rows, or more positions
    batch = next(session.train_batches(0))
    step_cost = cost_of_a_step(config, session.model, mesh)
    flops = step_cost.example(session.layout.num_items).flops
    _, lines = dry_run(config, session.task(fresh=True), batch=batch, mesh=mesh, flops=flops)
    if distributed.leader():
        print("\n".join(lines))


def say(line: str) -> None:
    """Progress, on standard error of the leading process."""
    if distributed.leader():
        print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    flags.run(main, __doc__)
