"""Reading checkpoints: verified, onto any mesh, from the newest good one."""

import logging
import pathlib
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from jaxrec.errors import CheckpointError, StructureError
from jaxrec.runtime import leaves
from jaxrec.runtime.checkpoint import integrity
from jaxrec.runtime.checkpoint.integrity import StoredLeaf, best_step, steps
from jaxrec.runtime.checkpoint.quiet import quiet_orbax
from jaxrec.runtime.checkpoint.saving import set_aside
from jaxrec.types import Array, Json, Tree

log = logging.getLogger(__name__)

# (stored leaves, trees to read) -> trees to read: their shapes by what is stored
Adapt = Callable[[Mapping[str, StoredLeaf], Mapping[str, Tree]], Mapping[str, Tree]]


class Restored(NamedTuple):
    """step: optimizer steps done. trees: by name, as requested. meta: what `save` was given."""

    step: int
    trees: dict[str, Tree]
    meta: Json


def restore(
    folder: pathlib.Path, step: int, like: Mapping[str, Tree], adapt: Adapt | None = None
) -> Restored:
    """Checkpoint `step`, verified.

    like: name -> tree of arrays or ShapeDtypeStructs whose shapes, dtypes and shardings the result
    has (no sharding: the first local device). Trees that are not named are not read. adapt: changes
    `like` by the stored shapes before anything is read.
    Raises CheckpointError: no such step, or corrupt (names the leaf); StructureError: other names
    or shapes than `like` (lists them), or an earlier layout.
    """
    if step not in steps(folder):
        raise CheckpointError(
            f"no checkpoint {step} in {folder}: there are {steps(folder) or 'none'}"
        )
    record = integrity.read_record(folder, step)
    like = like if adapt is None else adapt(record.leaves, like)
    abstract = {name: leaves.abstract(tree) for name, tree in like.items()}
    difference = leaves.difference(record.leaves, abstract)
    if difference:
        raise StructureError(
            f"checkpoint {step} in {folder} is not one of this model (another configuration or "
            f"catalog?):\n  {difference}"
        )
    integrity.check_files(folder, record, like)
    try:
        with quiet_orbax():
            flat = ocp.load_checkpointables((folder / str(step)).absolute(), abstract)
    except Exception as error:
        raise CheckpointError(
            f"checkpoint {step} in {folder} cannot be read: {integrity.first_line(error)}"
        ) from error
    _check_leaves(folder, step, record.leaves, flat)
    trees = {
        name: jax.tree.unflatten(jax.tree.structure(like[name]), [flat[name][k] for k in keys])
        for name, keys in abstract.items()
    }
    return Restored(step, trees, record.meta)


def _check_leaves(
    folder: pathlib.Path,
    step: int,
    stored: Mapping[str, StoredLeaf],
    trees: Mapping[str, Mapping[str, Array]],
) -> None:
    """Raises CheckpointError unless every array has the bytes that were saved."""
    for name, tree in trees.items():
        for key, array in tree.items():
            saved, actual = stored[f"{name}/{key}"].digest, leaves.digest(array)
            if actual != saved:
                raise CheckpointError(
                    f"checkpoint {step} in {folder} is corrupt: {name}/{key} is not what was "
                    f"saved (digest {actual}, saved {saved})"
                )


def restore_latest(
    folder: pathlib.Path, like: Mapping[str, Tree], adapt: Adapt | None = None
) -> Restored | None:
    """The newest good checkpoint (see `restore`); None without any checkpoint.

    A corrupt one is reported in a warning, set aside as `<step>.corrupt` (so the run can write that
    step again) and the next older one is tried. Raises CheckpointError when every checkpoint is
    corrupt, StructureError when a good one has another structure or an earlier layout.
    """
    errors = []
    for step in reversed(steps(folder)):
        try:
            restored = restore(folder, step, like, adapt)
        except StructureError:
            raise
        except CheckpointError as error:
            errors.append(f"{error}")
            log.warning("%s; trying the next older checkpoint", error)
            continue
        corrupt = [s for s in steps(folder) if s > step]
        if jax.process_count() > 1:  # nobody may still be reading them
            multihost_utils.sync_global_devices(f"restored {step}")
        for later in corrupt:
            set_aside(folder, later)
        return restored
    if errors:
        raise CheckpointError(
            f"no checkpoint in {folder} can be used; move the folder away to start anew. "
            + "; ".join(errors)
        )
    return None


def load_params(
    folder: pathlib.Path, like: Tree, which: str = "best", part: str = ""
) -> tuple[int, Tree]:
    """(step, parameters) for evaluation and serving; averaged ones where the run keeps them.

    like: tree of arrays or ShapeDtypeStructs. which: best (the latest where nothing was validated),
    latest, or a step number. part: name of parameters that are stored as a tree of their own, such
    as `item_tower`. Raises CheckpointError.
    """
    known = steps(folder)
    if not known:
        raise CheckpointError(f"no checkpoint in {folder}: train first, or name another workdir")
    if which not in ("best", "latest") and not which.isdecimal():
        raise CheckpointError(f"checkpoint {which!r}: allowed are best, latest or a step number")
    best = best_step(folder) if which == "best" else None
    step = int(which) if which.isdecimal() else known[-1] if best is None else best
    averaged = step in known and any(
        leaf.startswith("ema/") for leaf in integrity.read_record(folder, step).leaves
    )
    name = "ema" if averaged else "params"
    name += f"_{part}" if part else ""
    return step, restore(folder, step, {name: like}).trees[name]
