"""A process that appends events until it is killed: `python -m tests.serving.process WHERE STEP`.

Prints one line when it is ready and one per step that is durable.
"""

import sys

import jax
import numpy as np

from jaxrec.serving import Recommender
from tests import conftest  # noqa: F401  (devices and the compilation cache of the tests)
from tests.serving import standin
from tests.serving.standin import ITEMS, ORIGIN

USERS = 400  # more than one batch of the service


def day(step):
    """User ids, item ids and times that step appends; every user has some, in mixed order."""
    rng = np.random.default_rng(step)
    users = rng.permutation(np.repeat(np.arange(USERS), rng.integers(1, 4, USERS)))
    items = rng.integers(0, ITEMS, len(users)) * 10 + 1000
    return users, items, ORIGIN + 1000 * step + np.arange(len(users)) // 2


def recommender():
    config = standin.config(layers=1)
    return Recommender(
        config, standin.params_of(config), standin.catalog(), devices=jax.local_devices()[:1]
    )


def main(where, step):
    rec = recommender()
    store = rec.open_store(where)
    print("ready", flush=True)
    for number in range(int(step), 10**9):
        rec.append(store, *day(number), idempotent=True)
        print(number, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
