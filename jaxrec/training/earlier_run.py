"""Parameters that a run takes over from an earlier run on the same data (`train.init_from`).

A model with full history becomes a compressed one this way: everything but what belongs to the
compressed tokens is there already.
"""

import pathlib
from collections.abc import Mapping
from typing import NamedTuple

import jax
import numpy as np

from jaxrec.config import Config
from jaxrec.errors import CheckpointError, ConfigError, WorkdirError
from jaxrec.layout import SegmentLayout
from jaxrec.model import recommender
from jaxrec.model.parameters import DISTANCES, POSITIONS, is_of_tokens
from jaxrec.model.recommender import Model
from jaxrec.runtime import checkpoint, leaves, workdir

KEY = "train.init_from"
# keys of a model that may differ: they add parameters, leave some out or change none
MAY_DIFFER = (
    "model.item_bias",
    "model.dropout",
    "model.embed_dropout",
    "model.dtype",
    "model.attention",
    "model.remat",
    "model.remat_keep",
    "model.request_time",
    "model.state",
    "model.token_input",
    "model.token_distance",
    "model.repeat_half_lives",
    "model.repeat_half_times",
    "model.texts.rows",
    "model.texts.cache_dir",
)
# keys of other groups that parameters or their rows depend on
LIKE_MODEL = ("loss.similarity", "loss.temperature", "layout.positions")
BACKBONES = ("hstu", "sasrec", "llama")  # groups of keys, of which a model reads its own


class Earlier(NamedTuple):
    """What an earlier run gives.

    leaves: path -> value. line: which run and checkpoint it was, what begins anew, what is left.
    """

    leaves: dict[str, np.ndarray]
    line: str


def read(config: Config, model: Model, digests: Mapping[str, str]) -> Earlier:
    """The parameters of the best checkpoint in `train.init_from` that `model` has, too.

    digests: of this run's data: another split may have trained on what is held out here. Tables by
    position or distance that have more rows there give their first ones. Those of tokens are taken
    over from the same layout alone. Raises WorkdirError: no run there, or one of other data;
    ConfigError: its model is another one; CheckpointError.
    """
    folder = pathlib.Path(config.train.init_from)
    try:
        there = workdir.load_config(folder)
        workdir.check_data(folder, digests)
    except WorkdirError as error:
        raise WorkdirError(f"{KEY}: {error}") from error
    _check_model(folder, there, config)
    layout = SegmentLayout.from_config(there.layout)
    earlier = recommender.build(there.model, there.loss, layout, model.num_items)
    like = jax.eval_shape(earlier.init, jax.random.key(0))
    try:
        step, params = checkpoint.load_params(folder / workdir.CHECKPOINTS, like)
    except CheckpointError as error:
        raise CheckpointError(f"{KEY}: {error}") from error
    old = leaves.flatten(params)
    new = leaves.flatten(jax.eval_shape(model.init, jax.random.key(0)))
    same_layout = there.layout == config.layout
    found = {
        path: _first_rows(path, np.asarray(old[path]), new[path].shape)
        for path in new
        if path in old and (same_layout or not is_of_tokens(path))
    }
    kept = {path: value for path, value in found.items() if value is not None}
    line = f"parameters of {folder}, step {step}: {len(kept)} of {len(new)} are taken over"
    if anew := [path for path in new if path not in kept]:
        line += f"; these begin anew: {', '.join(anew)}"
    if left := [path for path in old if path not in kept]:
        line += f"; these are left out: {', '.join(left)}"
    return Earlier(kept, line)


def _first_rows(path: str, value: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | None:
    """The value as an array of this shape; None where the parameter begins anew.

    Row i of a table by position or distance means the same in every layout.
    """
    if value.shape == shape:
        return value
    if not path.endswith((POSITIONS, DISTANCES)) or value.ndim != len(shape):
        return None
    if any(has < needs for has, needs in zip(value.shape, shape, strict=True)):
        return None
    return value[tuple(slice(size) for size in shape)]


def _check_model(folder: pathlib.Path, there: Config, here: Config) -> None:
    """Raises ConfigError naming the keys that make another model of the parameters."""
    others = tuple(f"model.{name}." for name in BACKBONES if name != here.model.backbone)
    old, new = workdir.flatten(there), workdir.flatten(here)
    different = [
        f"{key}={old[key]!r} there, {value!r} here"
        for key, value in new.items()
        if key.startswith("model.") or key in LIKE_MODEL
        if key not in MAY_DIFFER and not key.startswith(others) and old[key] != value
    ]
    if different:
        raise ConfigError(
            f"{KEY}={folder}: its model is another one: {'; '.join(different)}. Give the values "
            "of that run, or leave the key empty"
        )
