"""A run's state in checkpoints: saving it, and restoring it to continue the run."""

import dataclasses
import functools
import pathlib
from collections.abc import Collection, Mapping
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from jaxrec.nn.item_tower import TOWER, without_tower
from jaxrec.runtime import checkpoint, distributed
from jaxrec.runtime import mesh as mesh_lib
from jaxrec.training import growth
from jaxrec.training.step import Assembled, TrainState
from jaxrec.training.validation import ValidationState
from jaxrec.types import Tree


class Resumed(NamedTuple):
    """Where a run starts.

    values: metrics of steps that no line has reported yet (`window.Window`). new_rows: rows added
    to the item table because data was appended; None: no data was.
    """

    state: TrainState
    validation: ValidationState
    values: list[dict[str, float]]
    new_rows: int | None


def resume(
    folder: pathlib.Path, assembled: Assembled, *, mesh: Mesh, heights: Collection[int] = ()
) -> Resumed:
    """The latest checkpoint in `folder`, or a new state where there is none.

    heights: rows that the item table may have had before data was appended; empty: no data was.
    Raises CheckpointError.
    """
    distributed.leader_first(lambda: checkpoint.clean(folder))
    like = to_trees(assembled.like)
    adapt = functools.partial(growth.as_stored, heights=heights, mesh=mesh) if heights else None
    restored = checkpoint.restore_latest(folder, like, adapt)
    if restored is None:
        state = mesh_lib.create(assembled.new, assembled.like)
        return Resumed(state, ValidationState(), [], None)
    trees, new_rows = restored.trees, None
    validation = ValidationState(**restored.meta["validation"])
    if heights:
        new_rows = growth.new_rows(trees, like)
        if new_rows:
            trees = growth.grow(trees, lambda: to_trees(assembled.new()), like)
        # values on other users and targets cannot be compared with those to come
        validation = ValidationState(evaluated=validation.evaluated)
    step = jax.device_put(np.int32(restored.step), assembled.like.step.sharding)
    state = mesh_lib.laid_out(from_trees(step, trees), assembled.like)
    return Resumed(state, validation, restored.meta["window"], new_rows)


def save(
    folder: pathlib.Path,
    step: int,
    state: TrainState,
    *,
    validation: ValidationState,
    values: list[dict[str, float]],
    seed: int,
    keep: int,
) -> None:
    """Writes checkpoint `step` and removes old ones but for `keep` and the best.

    values: see `Resumed`. Raises CheckpointError when it cannot be written.
    """
    meta = {"validation": dataclasses.asdict(validation), "window": values, "seed": seed}
    trees, best = to_trees(state), validation.best_step
    checkpoint.save(folder, step, trees, meta, best=best, replace=True)
    checkpoint.retain(folder, keep)


def to_trees(state: TrainState) -> dict[str, Tree]:
    """The trees of a state that a checkpoint stores, by name.

    Item towers are trees of their own: serving and evaluation do not read them.
    """
    trees = {"params": state.params, "opt_state": state.opt_state}
    trees |= {} if state.ema is None else {"ema": state.ema}
    towers = {n: tree[TOWER] for n, tree in trees.items() if n != "opt_state" and TOWER in tree}
    for name, tower in towers.items():
        trees[name] = without_tower(trees[name])
        trees[f"{name}_{TOWER}"] = tower
    return trees


def from_trees(step: jax.Array, trees: Mapping[str, Tree]) -> TrainState:
    """The inverse of `to_trees`."""
    fields: dict[str, Tree] = {"ema": None} | {n: t for n, t in trees.items() if TOWER not in n}
    for name in ("params", "ema"):
        if f"{name}_{TOWER}" in trees:
            fields[name] = {**fields[name], TOWER: trees[f"{name}_{TOWER}"]}
    return TrainState(step=step, **fields)
