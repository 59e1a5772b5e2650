"""Trees of arrays as flat tables (path -> array): paths, digests, differences."""

import hashlib
from collections.abc import Mapping
from typing import Any, Protocol, TypeAlias

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxrec.types import Array, Tree

SHOWN = 20  # lines of a difference

Leaf: TypeAlias = Any  # an array, its shape and dtype, or its sharding
KeyPath = tuple[object, ...]  # of jax.tree_util
Abstract = Mapping[str, Mapping[str, jax.ShapeDtypeStruct]]  # tree -> leaf -> shape


class Stored(Protocol):
    """Shape and dtype of an array in a file."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the dimensions."""
        ...

    @property
    def dtype(self) -> str:
        """Name of the number type."""
        ...


def path_name(path: KeyPath) -> str:
    """`opt_state/0/mu/item/embedding`: the path of a leaf in errors and files."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def flatten(tree: Tree) -> dict[str, Leaf]:
    """Path -> leaf, in the order of `jax.tree.leaves`.

    >>> from jaxrec.runtime import leaves
    >>> leaves.flatten({"item": {"bias": 1, "embedding": 2}})
    {'item/bias': 1, 'item/embedding': 2}
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {path_name(path): leaf for path, leaf in leaves}


def abstract(tree: Tree) -> dict[str, jax.ShapeDtypeStruct]:
    """Path -> shape, dtype and sharding (default: the first local device)."""
    local = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return {
        name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, "sharding", None) or local)
        for name, x in flatten(tree).items()
    }


def digest(x: Array) -> str:
    """BLAKE2 of an array's bytes: the same for every sharding, on every process."""
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        if x.is_fully_replicated:
            x = x.addressable_data(0)
        else:  # one leaf at a time, on the host
            x = multihost_utils.process_allgather(x, tiled=True)
    values = np.ascontiguousarray(x).reshape(-1).view(np.uint8)
    return hashlib.blake2b(values.data, digest_size=16).hexdigest()


def difference(stored: Mapping[str, Stored], needed: Abstract) -> str:
    """One line per leaf that prevents reading `needed` from a checkpoint; empty: it can be read.

    stored: `tree/leaf` -> shape and dtype. needed: tree -> leaf path -> shape and dtype. Other
    trees of the checkpoint are ignored.
    """
    model = {
        f"{name}/{leaf}": f"{x.dtype}{list(x.shape)}"
        for name, tree in needed.items()
        for leaf, x in tree.items()
    }
    saved = {
        leaf: f"{x.dtype}{list(x.shape)}"
        for leaf, x in stored.items()
        if leaf.partition("/")[0] in needed
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
