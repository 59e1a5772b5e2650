"""Growing a restored state after data was appended: rows for the new items.

Items keep their ids when files are appended (`jaxrec.data.append`); new items get the ids behind
them. So whatever has a row per item (the table, its moments, its average) keeps its rows and gets
the rows of a new state behind them; everything else stays as it was.
"""

from collections.abc import Callable, Collection, Mapping, Sequence

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxrec.model.parameters import has_item_rows
from jaxrec.runtime import leaves
from jaxrec.runtime import mesh as mesh_lib
from jaxrec.types import Tree


def as_stored(
    stored: Mapping[str, Sequence[Sequence[int]]],
    like: Mapping[str, Tree],
    heights: Collection[int],
    mesh: Mesh,
) -> dict[str, Tree]:
    """`like` with the fewer rows that a checkpoint's item tables have.

    stored: `tree/leaf` -> (shape, ...) of the checkpoint. like: tree name -> ShapeDtypeStructs.
    heights: rows that tables of the data before had; others are left for the reader to refuse.
    """

    def adapt(name: str, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        shape = tuple(stored[name][0]) if name in stored else leaf.shape
        fits = shape[:1] != () and shape[0] in heights and shape[1:] == tuple(leaf.shape[1:])
        if not (has_item_rows(name) and fits and shape[0] < leaf.shape[0]):
            return leaf
        # the old table may not divide as the new one does; it is whole for a moment then
        divides = shape[0] % mesh.shape[mesh_lib.MODEL] == 0
        sharding = leaf.sharding if divides else mesh_lib.replicated(mesh)
        return jax.ShapeDtypeStruct(shape, leaf.dtype, sharding=sharding)

    return {
        tree: jax.tree_util.tree_map_with_path(
            lambda path, leaf, tree=tree: adapt(f"{tree}/{leaves.path_name(path)}", leaf), content
        )
        for tree, content in like.items()
    }


def grow(trees: Tree, fresh: Callable[[], Tree], like: Tree) -> Tree:
    """`trees` with the missing rows of `fresh()`, shaped and placed as `like`.

    fresh: makes new trees of the same structure; what is not needed of them is not computed.
    """

    def extended(old: jax.Array, new: jax.Array) -> jax.Array:
        return old if old.shape == new.shape else jnp.concatenate([old, new[old.shape[0] :]])

    def make(old: Tree) -> Tree:
        return jax.tree.map(extended, old, fresh())

    return jax.jit(make, out_shardings=jax.tree.map(lambda x: x.sharding, like))(trees)


def new_rows(trees: Tree, like: Tree) -> int:
    """How many rows `grow` adds to a table; 0: the trees fit."""
    pairs = zip(jax.tree.leaves(trees), jax.tree.leaves(like), strict=True)
    return max((b.shape[0] - a.shape[0] for a, b in pairs if a.shape != b.shape), default=0)
