"""Trains a sequential recommender, evaluates it, prints what compression saves.

    jaxrec train --config=configs/quickstart.py --workdir=runs/quickstart

prepares the data, trains (progress on standard error), keeps the best and the latest
checkpoints, evaluates the best one and prints the table. The same command continues a killed
run with the same data order, schedule and random state.

  --config=FILE[:ARGUMENT]  a recipe of configs/; its docstring says what ARGUMENT may be
  --config.KEY=VALUE        another value for one of the keys below
  --workdir=FOLDER          where the run lives: data, checkpoints, metrics.jsonl, results.json

  --verbose                 also the rows of the table that say nothing new

SIGTERM saves and exits 0. Ctrl-C saves and exits 130; a second one stops at once.
JAX_PLATFORMS=cpu, cuda or tpu picks the devices.

Several machines: the same command on each, on a folder that all of them see, with

  --coordinator=HOST:PORT --processes=N --process=I
                            address of process 0, how many there are, which one this is (or
                            $JAXREC_COORDINATOR, $JAXREC_PROCESSES, $JAXREC_PROCESS)
  --coordinator=auto        ask the cluster; the default under Slurm and on TPU pods
  --peer_timeout=SECONDS    a process that is silent for so long ends the run (default 100)
"""

from collections.abc import Sequence
from typing import Any

from jaxrec.cli import flags


def main(argv: Sequence[str]) -> int:
    """`jaxrec train`; returns its exit status."""
    return flags.call(_train, __doc__, argv, define=_define)


def _define(values: Any) -> None:
    from absl import flags as absl_flags

    absl_flags.DEFINE_string(
        "coordinator", "", "HOST:PORT of process 0, auto or none", flag_values=values
    )
    absl_flags.DEFINE_integer("processes", None, "number of processes", flag_values=values)
    absl_flags.DEFINE_integer("process", None, "which of them this is", flag_values=values)
    absl_flags.DEFINE_integer("peer_timeout", 100, "seconds", lower_bound=1, flag_values=values)
    absl_flags.DEFINE_bool("verbose", False, "all rows of the table", flag_values=values)


def _train(values: Any) -> int:
    from jaxrec.cli import training  # --help and mistakes in flags do without jax

    return training.main(values)
