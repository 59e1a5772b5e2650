"""One process of a run of several: `python -m tests.integration.peer FOLDER STEPS [FAULT STEP]`.

The stand-in model of `tests.training.standin` on all devices of all processes; where this one
stands is in the environment (`jaxrec.runtime.distributed`). FAULT hurts this process, see
`standin.Fault`; `error` raises while batch STEP is made.
"""

import os
import pathlib
import sys

import jax

from jaxrec.runtime import checkpoint, distributed
from jaxrec.types import Batch
from tests.training import standin


def local_rows(source):
    """This process's rows of every batch."""
    index, count = jax.process_index(), jax.process_count()
    for batch in source:
        share = len(batch.user) // count
        yield Batch(*(x[index * share : (index + 1) * share] for x in batch))


def main():
    folder, steps, *fault = sys.argv[1:]
    distributed.start(distributed.place(), timeout=10)
    broken = standin.Fault(fault[0], int(fault[1])) if fault else standin.Fault("none", 0)

    def batches(start):
        for number, batch in enumerate(local_rows(broken.batches(start)), start):
            if broken.where == "error" and number == broken.step:
                raise OSError("the disk is gone")
            yield batch

    config = standin.make_config(steps=int(steps), log_every=1)
    config.mesh.data, config.mesh.model = 0, 2
    try:
        result = standin.fit(folder, config, batches=batches, evaluate=standin.evaluate)
    except Exception as error:
        distributed.give_up(error, "peer")
    step, params = checkpoint.load_params(
        pathlib.Path(folder) / "checkpoints", standin.init(jax.random.key(0)), "latest"
    )
    print(result.stopped, result.step, step, float(params["item"]["embedding"].sum()), flush=True)
    if os.environ.get(distributed.COORDINATOR):
        jax.distributed.shutdown()


if __name__ == "__main__":
    main()
