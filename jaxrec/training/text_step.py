"""Steps that train an item tower: the items of a batch are encoded inside the step.

The host names the distinct items of a batch and of its negatives and packs their distinct texts
into rows (`jaxrec.training.text_batches`). The step encodes the rows, a chunk at a time, and the
loss sees a table of these items alone, as in `row_updates`. What it says about the vectors goes
back through the tower, chunk by chunk again and computed anew: memory is that of one chunk,
whatever the batch. Chunks that hold no text are not computed.

Dimension letters: S chunks, C rows of a chunk, T positions of a row, I rows of the table, D width.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from jaxrec.nn.item_tower import TOWER, ItemTower
from jaxrec.objective.sampling import Negatives
from jaxrec.runtime import leaves
from jaxrec.runtime import mesh as mesh_lib
from jaxrec.training.gradient import mean_gradient
from jaxrec.training.row_updates import TABLE
from jaxrec.types import Array, Batch, Params


class TextBatch(NamedTuple):
    """A batch whose items, and the negatives, name rows of a table made in the step.

    which: int32 [I], the text of every row of that table, 0 where it has none (padding is row 0).
    words, owner, positions: int32 [S, C, T] texts 1, 2, ... packed as in
    `data.item_words.Packed`; used: int32 [], chunks that hold texts, the first ones.
    """

    batch: Batch
    negatives: Negatives
    which: Array
    words: Array
    owner: Array
    positions: Array
    used: Array


class TextItems(NamedTuple):
    """What `fit` needs to train an item tower.

    put: (step, a process's rows of its batch) -> arrays on the mesh. refresh: parameters with the
    item table that their tower makes now; it may be given up by an exception and called again.
    """

    tower: ItemTower
    put: Callable[[int, Batch], TextBatch]
    refresh: Callable[[Params], Params]


def shardings(mesh: Mesh) -> TextBatch:
    """Users, and the rows of every chunk, over all devices."""
    everywhere, users = mesh_lib.replicated(mesh), mesh_lib.batch_sharding(mesh)
    chunk = NamedSharding(mesh, mesh_lib.spec(None, "batch"))
    return TextBatch(
        Batch(*[users] * len(Batch._fields)),
        Negatives(everywhere, everywhere),
        everywhere,
        chunk,
        chunk,
        chunk,
        everywhere,
    )


def encode(tower: ItemTower, params: Params, batch: TextBatch) -> jax.Array:
    """float32 [I, D] vectors of the texts 1, 2, ...; zeros in row 0 and behind the last."""
    count = len(batch.which)

    def add(chunk: jax.Array, total: jax.Array) -> jax.Array:
        # a text lies in one row alone, so the chunks add up
        return total + tower.vectors(params, *_chunk(batch, chunk), count)

    zeros = jnp.zeros((count, tower.text.config.width), jnp.float32)
    total = jax.lax.fori_loop(0, batch.used, add, zeros)
    return jnp.concatenate([zeros[:1], total[:-1]])


def pull_back(
    tower: ItemTower,
    params: Params,
    batch: TextBatch,
    cotangent: jax.Array,
    trained: Callable[[str], bool],
) -> Params:
    """Gradients for the tower's parameters from those [I, D] for `encode`.

    trained: whether the leaf of a path below the tower has a gradient, others get zeros.
    """
    flat, structure = jax.tree.flatten(params)
    moving = [place for place, name in enumerate(leaves.flatten(params)) if trained(name)]
    cotangent = jnp.concatenate([cotangent[1:], jnp.zeros_like(cotangent[:1])])

    def add(chunk: jax.Array, total: list[jax.Array]) -> list[jax.Array]:
        def vectors(given: list[jax.Array]) -> jax.Array:
            whole = list(flat)
            for place, leaf in zip(moving, given, strict=True):
                whole[place] = leaf
            whole = jax.tree.unflatten(structure, whole)
            return tower.vectors(whole, *_chunk(batch, chunk), len(batch.which))

        _, back = jax.vjp(vectors, [flat[place] for place in moving])
        return jax.tree.map(jnp.add, total, back(cotangent)[0])

    zeros = [jnp.zeros_like(leaf) for leaf in flat]
    found = jax.lax.fori_loop(0, batch.used, add, [zeros[place] for place in moving])
    for place, leaf in zip(moving, found, strict=True):
        zeros[place] = leaf
    return jax.tree.unflatten(structure, zeros)


def _chunk(batch: TextBatch, number: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    return batch.words[number], batch.owner[number], batch.positions[number]


def gradient_of(tower: ItemTower, trained: Callable[[str], bool]) -> Callable[..., Any]:
    """`mean_gradient` for a `TextBatch`: the texts are encoded once, for all parts of the batch.

    The loss gets a table of the batch's items in place of the catalog's, and `negatives`. An item
    without text stands at `item_mean`, as in the catalog's table. trained: of parameter paths.
    """

    def gradient(
        loss: Callable[..., Any],
        params: Params,
        batch: TextBatch,
        rng: jax.Array,
        parts: int,
        mesh: Mesh,
    ) -> tuple[jax.Array, dict[str, jax.Array], Params]:
        rest = {k: v for k, v in params.items() if k not in (TOWER, TABLE)}
        absent, everywhere = (batch.which == 0)[:, None], mesh_lib.replicated(mesh)

        def table_of(vectors: jax.Array) -> jax.Array:
            return jnp.where(absent, params["item_mean"][None], vectors[batch.which])

        vectors = encode(tower, params[TOWER], batch)
        table, back = jax.vjp(table_of, jax.lax.with_sharding_constraint(vectors, everywhere))

        def given(params: Params, part: Batch, key: jax.Array) -> Any:
            return loss(params, part, key, negatives=batch.negatives)

        value, metrics, found = mean_gradient(
            given, {**rest, TABLE: table}, batch.batch, rng, parts, mesh
        )
        (cotangent,) = back(found[TABLE])
        cotangent = jax.lax.with_sharding_constraint(cotangent, everywhere)
        of_tower = pull_back(
            tower, params[TOWER], batch, cotangent, lambda name: trained(f"{TOWER}/{name}")
        )
        present = jnp.sum(batch.owner > 0)
        computed = batch.used * (batch.words[0].size)
        metrics = {**metrics, "positions_per_word": computed / jnp.maximum(present, 1)}
        nothing = jnp.zeros_like(params[TABLE])  # the table is no parameter of this step
        return value, metrics, {**found, TOWER: of_tower, TABLE: nothing}

    return gradient
