"""The initial parameters of a run: random, from pretrained models and from popularity."""

import pathlib
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from jaxrec.config import Config
from jaxrec.interop import huggingface, item_towers
from jaxrec.items import popularity, text_table
from jaxrec.model.initial import starting_from
from jaxrec.model.network import initial_scale
from jaxrec.model.recommender import Model
from jaxrec.nn.item_tower import TOWER, ItemTower
from jaxrec.runtime import leaves
from jaxrec.training import text_batches
from jaxrec.types import Params


def fresh_init(model: Model, tower: ItemTower | None) -> Callable[[jax.Array], Params]:
    """Key -> random parameters of the model, and of the item tower where it is trained."""
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
    earlier: Mapping[str, np.ndarray] | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Callable[[jax.Array], Params]:
    """`fresh_init` with what comes from pretrained models, which are read now.

    texts: of items 0..V (`Prepared.texts`). counts: [V + 1] training events per item, from which
    item biases start. folder: where vectors of texts are kept. earlier: path -> value of what is
    known already and replaces the rest (`earlier_run`). Raises WeightsError, DataError,
    ConfigError.
    """
    init = fresh_init(model, tower)
    known: dict[str, np.ndarray] = {}
    if config.model.texts.model:
        known |= _item_leaves(config, tower, texts=texts, folder=folder, mesh=mesh, say=say)
    if config.model.texts.user_model:
        known |= huggingface.encoder_leaves(config.model.texts.user_model)
    if config.model.item_bias:
        known |= popularity.leaves(counts, initial_scale(config.loss))
    known |= earlier or {}
    return starting_from(init, known) if known else init


def _item_leaves(
    config: Config,
    tower: ItemTower | None,
    *,
    texts: Mapping[str, Sequence[str]] | None,
    folder: pathlib.Path,
    mesh: Mesh | None,
    say: Callable[[str], None],
) -> dict[str, np.ndarray]:
    """Path -> value of the parameters that come from the folder of the item tower."""
    loaded: dict[str, np.ndarray] = {}
    if config.loss.similarity == "cosine" and not config.loss.temperature:
        loaded |= item_towers.scale_leaf(config.model.texts.model)
    weights = None
    if tower is not None:
        weights = item_towers.tower_weights(config.model, tower)
        loaded |= {f"{TOWER}/{name}": leaf for name, leaf in leaves.flatten(weights).items()}
        if not config.model.texts.standardize:
            return loaded  # the first validation makes the table
    encoded = item_towers.encode_catalog(
        config.model, texts, folder, params=weights, mesh=mesh, say=say
    )
    return loaded | text_table.leaves(encoded.vectors, config.model.texts.standardize)
