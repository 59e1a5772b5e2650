"""Vectors of texts as the item table: what `params["item"]` starts from with `model.texts`.

    init = starting_from(model.init, leaves(encoded.vectors))

The table holds the vectors as the text encoder computed them; the model brings them to mean 0 and
spread 1 (`jaxrec.items.table.standardised`). New items get their rows from text alone
(`append_items`): no training, no id.
"""

import jax.numpy as jnp
import numpy as np

from jaxrec.items.table import EMBEDDING, ITEM, MEAN, SCALE
from jaxrec.types import Array, Params

_NO_SPREAD = 1e-6  # standard deviation of a dimension that is the same for all items


def standards(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(mean [W], 1 / standard deviation [W]) over the items that have a text (a row not zero)."""
    present = vectors[np.any(vectors != 0, axis=1)].astype(np.float64)
    spread = present.std(0)
    scale = np.where(spread > _NO_SPREAD, 1 / np.maximum(spread, _NO_SPREAD), 0.0)
    return present.mean(0).astype(np.float32), scale.astype(np.float32)


def leaves(vectors: np.ndarray, standardize: bool = True) -> dict[str, np.ndarray]:
    """The parameters that hold vectors [V + 1, W] of texts, by path.

    standardize: the model brings them to mean 0 and spread 1 per dimension.
    """
    width = vectors.shape[1]
    mean, scale = np.zeros(width, np.float32), np.ones(width, np.float32)
    if standardize:
        mean, scale = standards(vectors)
    return {
        f"{ITEM}/{EMBEDDING}": filled(vectors, mean),
        f"{ITEM}/{MEAN}": mean,
        f"{ITEM}/{SCALE}": scale,
    }


def filled(vectors: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """float32 [V + 1, W]: `vectors`, with the mean [W] in the rows of items without text.

    Such an item is neither liked nor disliked.
    """
    return np.where(_has_text(vectors), vectors, mean[None]).astype(np.float32)


def append_items(params: Params, vectors: np.ndarray) -> Params:
    """Parameters with items V + 1, V + 2, ... whose texts have the vectors [N, W].

    Nothing else changes; the new items are scored by text alone. Raises ValueError for vectors of
    another width.
    """
    group = params[ITEM]
    table, mean = group[EMBEDDING], group[MEAN]
    if vectors.ndim != 2 or vectors.shape[1] != table.shape[1]:
        raise ValueError(
            f"vectors have shape {vectors.shape}: the table has rows of {table.shape[1]} numbers"
        )
    rows: Array = jnp.where(_has_text(vectors), vectors, mean[None])
    embedding = jnp.concatenate([table, rows.astype(table.dtype)])
    return {**params, ITEM: {**group, EMBEDDING: embedding}}


def _has_text(vectors: np.ndarray) -> np.ndarray:
    """bool [N, 1]: items without text have a row of zeros."""
    return np.any(vectors != 0, axis=1, keepdims=True)
