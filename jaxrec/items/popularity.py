"""A score of an item that no user changes: `model.item_bias`.

    score(u, v) = <x_u, e_v> + b_v,   b_v = log(c_v + 1) at the start, c_v events in training

The last column of the item table. Softmax losses with corrected negatives estimate how likely the
next event is item v (`losses`), so the logarithm of its share of all events is where a model that
knows nothing of its users should begin; learned vectors then say what is different about a user.
"""

from collections.abc import Callable

import jax
import numpy as np

from jaxrec.types import Params


def log_popularity(counts: np.ndarray) -> np.ndarray:
    """float32 [V + 1] of training events per item [V + 1]: log(c + 1), mean 0 over the items.

    Row 0, padding, is 0.
    """
    logs = np.log1p(np.asarray(counts, np.float64))
    logs[1:] -= logs[1:].mean()
    logs[0] = 0.0
    return logs.astype(np.float32)


def starting_from(
    init: Callable[[jax.Array], Params], counts: np.ndarray, scale: float
) -> Callable[[jax.Array], Params]:
    """`init` with the biases of items by popularity.

    scale: of the logits at the start; it is divided out. The
    values are fetched when the parameters are made; they are no constants of the program.
    """
    column = log_popularity(counts) / np.float32(scale)

    def start(rng: jax.Array) -> Params:
        params = init(rng)
        table = params["item_embedding"]
        shape = jax.ShapeDtypeStruct(column.shape, table.dtype)
        bias = jax.pure_callback(lambda: column.astype(table.dtype), shape)
        return {**params, "item_embedding": table.at[:, -1].set(bias)}

    return start
