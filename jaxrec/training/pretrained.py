"""Where the parameters of a run start: drawn, or read from pretrained models and popularity."""

import pathlib
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from jaxrec.config import Config
from jaxrec.interop import towers
from jaxrec.items import popularity
from jaxrec.model.network import scale_at_start
from jaxrec.model.recommender import Model
from jaxrec.nn.item_tower import TOWER, ItemTower
from jaxrec.runtime import leaves
from jaxrec.training import text_batches
from jaxrec.types import Params


def fresh_init(model: Model, tower: ItemTower | None) -> Callable[[jax.Array], Params]:
    """Parameters drawn from a key: of the model, and of the item tower where it is trained."""
    return model.init if tower is None else text_batches.with_tower(model.init, tower)


def starting_init(
    config: Config,
    model: Model,
    tower: ItemTower | None,
    *,
    texts: Mapping[str, Sequence[str]] | None,
    counts: np.ndarray,
    folder: pathlib.Path,
    mesh: Mesh | None,
    say: Callable[[str], None] = lambda line: None,
) -> Callable[[jax.Array], Params]:
    """`fresh_init` with what comes from pretrained models, which are read now.

    texts: of items 0..V (`Prepared.texts`). counts: [V + 1] training events per item, from which
    item biases start. folder: where vectors of texts are kept. Raises WeightsError, DataError,
    ConfigError.
    """
    init = fresh_init(model, tower)
    loaded: dict[str, np.ndarray] = {}
    if config.model.texts.model:
        loaded |= _item_leaves(config, tower, texts=texts, folder=folder, mesh=mesh, say=say)
    if config.model.texts.user_model:
        loaded |= towers.user_leaves(config.model.texts.user_model)
    if loaded:
        init = towers.starting_from(init, loaded)
    if config.model.item_bias:
        init = popularity.starting_from(init, counts, scale_at_start(config.loss))
    return init


def _item_leaves(
    config: Config,
    tower: ItemTower | None,
    *,
    texts: Mapping[str, Sequence[str]] | None,
    folder: pathlib.Path,
    mesh: Mesh | None,
    say: Callable[[str], None],
) -> dict[str, np.ndarray]:
    """Path -> value of what comes from the folder of the item tower."""
    loaded: dict[str, np.ndarray] = {}
    if config.loss.similarity == "cosine" and not config.loss.temperature:
        loaded |= towers.scale_leaf(config.model.texts.model)
    weights = None
    if tower is not None:
        weights = towers.tower_weights(config.model, tower)
        loaded |= {f"{TOWER}/{name}": leaf for name, leaf in leaves.flatten(weights).items()}
        if not config.model.texts.standardize:
            return loaded  # the first validation makes the table
    encoded = towers.encode_catalog(config.model, texts, folder, params=weights, mesh=mesh, say=say)
    return loaded | towers.table_leaves(encoded.vectors, config.model.texts.standardize)
