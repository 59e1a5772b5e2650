"""Trains a sequential recommender, evaluates it, prints what compression saves.

python train.py --config=configs/quickstart.py --workdir=runs/quickstart

The same command goes on where a killed run stopped: same data order, schedule and random state.
Any setting can be changed: --config.train.steps=100 --config.model.layers=4 (jaxrec/config.py
lists them). Recipes: configs/.
"""

import json
import pathlib
from typing import Any

import jax

from jaxrec import commands, evaluation
from jaxrec.config import validate
from jaxrec.training.loop import fit


def main(flags: Any) -> None:
    config, folder = validate(flags.config), pathlib.Path(flags.workdir)
    if config.train.compilation_cache:
        jax.config.update("jax_compilation_cache_dir", config.train.compilation_cache)
    folder.mkdir(parents=True, exist_ok=True)
    session = commands.Session(config, folder)
    result = fit(
        config,
        folder,
        init=session.model.init,
        loss=session.model.loss,
        batches=session.train_batches,
        evaluate=session.validation(),
        item_counts=session.prepared.counts,
        digests=session.digests,
    )
    if result.stopped == "preempted":
        return
    report = session.evaluate(lambda line: print(line, flush=True))
    (folder / "results.json").write_text(json.dumps(report, indent=2) + "\n")
    print(evaluation.format_table(report))


if __name__ == "__main__":
    commands.run(main, __doc__)
