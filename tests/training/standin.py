"""A model small enough to train in a test, behind the interfaces of the real one.

Also a program: `python -m tests.training.standin WORKDIR FAULT STEP` trains it in a process of
its own and hurts that process at STEP (see `Fault`), as a machine would.
"""

import os
import pathlib
import signal
import sys

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.config import Config
from jaxrec.runtime.checkpoint import integrity
from jaxrec.training import loop
from jaxrec.training.task import DataIdentity, Task
from jaxrec.types import Batch

ITEMS, WIDTH, SLOTS = 31, 8, 6
DIGESTS = {"data": "stand-in", "vocabulary": "stand-in"}
RATES = (
    *("steps_per_s", "examples_per_s", "events_per_s", "input_wait"),
    *("tokens_per_s", "positions_per_event", "flops_per_s", "mfu"),
)


def init(rng):
    table, kernel = jax.random.split(rng)
    return {
        "item": {"embedding": 0.1 * jax.random.normal(table, (ITEMS + 1, WIDTH))},
        "encoder": {
            "kernel": jax.random.normal(kernel, (WIDTH, WIDTH)) / WIDTH**0.5,
            "bias": jnp.zeros(WIDTH),
        },
    }


def loss(params, batch, *, rng, train, item_counts):
    """Cross entropy of the next item, from the item before it; dropout makes it random."""
    table = params["item"]["embedding"]
    x = table[batch.items[:, :-1]]
    h = jnp.tanh(x @ params["encoder"]["kernel"] + params["encoder"]["bias"][None, None])
    if train:
        h = h * jax.random.bernoulli(rng, 0.8, h.shape)
    logits = h @ table.T + jnp.log1p(item_counts)[None, None]
    logp = jax.nn.log_softmax(logits)
    target = batch.items[:, 1:]
    nll = -jnp.take_along_axis(logp, target[..., None], -1)[..., 0]
    weights = batch.weights[:, 1:]
    hits = (logits.argmax(-1) == target) * weights
    return (nll * weights).sum(), weights.sum(), {"hits": hits.sum() / weights.sum()}


def batch_at(step, size=8):
    rng = np.random.default_rng([7, step])
    start = rng.integers(1, ITEMS + 1, (size, 1))
    items = (start + np.arange(SLOTS + 1) * 3) % ITEMS + 1  # learnable: always three further
    return Batch(
        items=items.astype(np.int32),
        times=np.zeros((size, SLOTS + 1), np.int32),
        lengths=np.full((size, 1), SLOTS, np.int32),
        weights=rng.integers(0, 2, (size, SLOTS + 1)).astype(np.float32),
        user=np.arange(size, dtype=np.int32),
        history=np.full(size, SLOTS, np.int32),
    )


def batches(start):
    step = start
    while True:
        yield batch_at(step)
        step += 1


COUNTS = np.arange(ITEMS + 1, dtype=np.float32)  # NumPy: importing touches no device


@jax.jit
def _mean_loss(params, batch):
    total, weight, _ = loss(params, batch, rng=None, train=False, item_counts=COUNTS)
    return total / weight


def evaluate(params):
    return {"ndcg@10": -float(_mean_loss(params, batch_at(10**6))), "recall@10": 0.0}


def make_config(**train):
    config = Config()
    values = {
        "steps": 24,
        "batch_size": 8,
        "learning_rate": 0.05,
        "warmup": 4,
        "log_every": 5,
        "eval_every": 8,
        "checkpoint_every": 6,
        "ema": 0.9,
        **train,
    }
    for key, value in values.items():
        setattr(config.train, key, value)
    config.mesh.data = 1
    return config


def fit(folder, config=None, **overrides):
    """`loop.fit` of the stand-in; overrides: fields of its `Task`, `digests`, or arguments."""
    task = {"init": init, "loss": loss, "sampling": COUNTS}
    task |= {name: overrides.pop(name) for name in [*task] if name in overrides}
    arguments = {
        "batches": batches,
        "evaluate": evaluate,
        "identity": DataIdentity(overrides.pop("digests", DIGESTS)),
        **overrides,
    }
    return loop.fit(config or make_config(), pathlib.Path(folder), Task(**task), **arguments)


class Fault:
    """Hurts the process at a step: in the loader, in a checkpoint, in a validation.

    batch-SIGNAL: while batch STEP is made; save-SIGKILL: between Orbax's part and the commit
    of the first checkpoint at or after STEP; evaluate-SIGTERM: during the validation at STEP.
    """

    def __init__(self, name: str, step: int):
        self.where, _, number = name.partition("-")
        self.signal = getattr(signal, number) if number else None
        self.step = step
        self.made = 0  # batches, which is also the step of a validation

    def _hurt(self) -> None:
        if self.signal is not None:
            os.kill(os.getpid(), self.signal)

    def batches(self, start):
        for step, batch in enumerate(batches(start), start):
            if self.where == "batch" and step == self.step:
                self._hurt()
            self.made = step + 1
            yield batch

    def evaluate(self, params):
        if self.where == "evaluate" and self.made == self.step:
            self._hurt()
            signal.pause()  # a long validation
        return evaluate(params)

    def install(self) -> None:
        if self.where != "save":
            return
        digest = integrity.file_digest

        def hurting(path):
            if int(path.relative_to(sys.argv[1]).parts[1].removesuffix(".new")) >= self.step:
                self._hurt()
            return digest(path)

        integrity.file_digest = hurting


def main():
    _, folder, name, step = sys.argv
    fault = Fault(name, int(step))
    fault.install()
    result = fit(folder, batches=fault.batches, evaluate=fault.evaluate)
    print(result.stopped, result.step)


if __name__ == "__main__":
    main()
