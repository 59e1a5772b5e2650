"""Trees of arrays as flat name -> array tables: names, digests, differences."""

import hashlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

SHOWN = 20  # lines of a difference


def path_name(path: Any) -> str:
    """`opt_state/0/mu/item_embedding`: the name of a leaf in errors and files."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def flatten(tree: Any) -> dict[str, Any]:
    """Name -> leaf, in the order of `jax.tree.leaves`."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {path_name(path): leaf for path, leaf in leaves}


def abstract(tree: Any) -> dict[str, jax.ShapeDtypeStruct]:
    """Name -> shape, dtype and sharding (where a leaf has none: the first local device)."""
    local = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return {
        name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, "sharding", None) or local)
        for name, x in flatten(tree).items()
    }


def digest(x: Any) -> str:
    """BLAKE2 of an array's bytes: the same for every sharding, on every process."""
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        if x.is_fully_replicated:
            x = x.addressable_data(0)
        else:  # one leaf at a time, on the host
            x = multihost_utils.process_allgather(x, tiled=True)
    values = np.ascontiguousarray(x).reshape(-1).view(np.uint8)
    return hashlib.blake2b(values.data, digest_size=16).hexdigest()


def difference(stored: Mapping[str, Any], wanted: Mapping[str, Mapping[str, Any]]) -> str:
    """What stands in the way of reading `wanted` from a checkpoint; empty: nothing.

    stored: `tree/leaf` -> (shape, dtype, ...). wanted: tree -> leaf name -> array-like. Trees
    that are not wanted are left out.
    """
    model = {
        f"{name}/{leaf}": f"{x.dtype}{list(x.shape)}"
        for name, tree in wanted.items()
        for leaf, x in tree.items()
    }
    saved = {
        leaf: f"{dtype}{list(shape)}"
        for leaf, (shape, dtype, *_) in stored.items()
        if leaf.partition("/")[0] in wanted
    }
    lines = [f"missing {leaf} {kind}" for leaf, kind in model.items() if leaf not in saved]
    lines += [f"extra {leaf} {kind}" for leaf, kind in saved.items() if leaf not in model]
    lines += [
        f"{leaf} is {saved[leaf]}, the model has {kind}"
        for leaf, kind in model.items()
        if leaf in saved and saved[leaf] != kind
    ]
    if len(lines) > SHOWN:
        lines[SHOWN:] = [f"and {len(lines) - SHOWN} more"]
    return "\n  ".join(lines)
