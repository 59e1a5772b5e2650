"""Item biases that start at popularity: `model.item_bias`.

    score(u, v) = <x_u, e_v> + b_v,   b_v = log(c_v + 1) at the start, c_v events in training

The bias is the same for all users. Softmax losses with corrected negatives estimate how likely the
next event is item v (`jaxrec.objective.losses`). A model that knows nothing of its users should
therefore start at the logarithm of an item's share of all events; learned vectors then express how
a user differs from the average.
"""

import numpy as np

from jaxrec.items.table import BIAS, ITEM


def log_popularity(counts: np.ndarray) -> np.ndarray:
    """float32 [V + 1] from training events per item [V + 1]: log(c + 1), mean 0 over the items.

    Row 0, padding, is 0.
    """
    logs = np.log1p(np.asarray(counts, np.float64))
    logs[1:] -= logs[1:].mean()
    logs[0] = 0.0
    return logs.astype(np.float32)


def leaves(counts: np.ndarray, scale: float) -> dict[str, np.ndarray]:
    """The bias of every item by path, for `jaxrec.model.initial.starting_from`.

    counts: training events per item [V + 1]. scale: factor of the logits at the start; it is
    divided out.
    """
    return {f"{ITEM}/{BIAS}": log_popularity(counts) / np.float32(scale)}
