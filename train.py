"""Trains a sequential recommender, evaluates it, prints what compression saves.

    python train.py --config=configs/quickstart.py --workdir=runs/quickstart

prepares the data, trains (progress on standard error), keeps the best and the latest
checkpoints, evaluates the best one and prints the table. The same command goes on where a
killed run stopped: same data order, schedule and random state.

  --config=FILE[:ARGUMENT]  a recipe of configs/; its docstring says what ARGUMENT may be
  --config.KEY=VALUE        another value for one of the keys below
  --workdir=FOLDER          where the run lives: data, checkpoints, metrics.jsonl, results.json

SIGTERM saves and exits 0. JAX_PLATFORMS=cpu, cuda or tpu picks the devices.
"""

import functools
import json
import pathlib
import sys
from typing import Any

import jax

from jaxrec import commandline, commands, evaluation
from jaxrec.config import Config
from jaxrec.runtime import mesh as mesh_lib
from jaxrec.runtime import workdir
from jaxrec.runtime.preemption import Preempted, Preemption
from jaxrec.training.loop import fit


def main(flags: Any) -> None:
    config, folder = flags.config, pathlib.Path(flags.workdir)
    if config.train.compilation_cache:
        jax.config.update("jax_compilation_cache_dir", config.train.compilation_cache)
    try:
        with Preemption() as preemption:
            train(config, folder, preemption)
    except Preempted:
        print("stopped by SIGTERM; the same command continues the run", file=sys.stderr)


def train(config: Config, folder: pathlib.Path, preemption: Preemption) -> None:
    """Data, model, training, evaluation. Raises Preempted after SIGTERM."""
    mesh = mesh_lib.make_mesh(config.mesh)  # refuses what cannot work before any work
    mesh_lib.check_batch_size(mesh, config.train.batch_size, "train.batch_size")
    folder.mkdir(parents=True, exist_ok=True)
    with preemption.interrupting():
        session = commands.Session(config, folder)
    result = fit(
        config,
        folder,
        init=session.model.init,
        loss=functools.partial(session.model.loss, item_dropout=config.train.item_dropout),
        batches=session.train_batches,
        evaluate=session.validation(),
        item_counts=session.prepared.counts,
        mesh=mesh,
        preemption=preemption,
        digests=session.digests,
    )
    if result.stopped == "preempted":
        raise Preempted
    with preemption.interrupting():
        report = session.evaluate(lambda line: print(line, file=sys.stderr, flush=True))
    workdir.write_text(folder / "results.json", json.dumps(report, indent=2) + "\n")
    print(evaluation.format_table(report))


if __name__ == "__main__":
    commandline.run(main, __doc__)
