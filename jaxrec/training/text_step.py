"""Steps that train an item tower: the items of a batch are encoded inside the step.

The host finds the distinct items of a batch and of its negatives and packs their distinct texts
into rows (`jaxrec.training.text_batches`). The step encodes the rows, a chunk at a time, and the
loss is given the vectors of these items alone, as in `row_updates`. Their gradient goes back
through the tower chunk by chunk, with activations recomputed: memory is that of one chunk, whatever
the batch. Chunks without texts are not computed.

Dimension letters: S chunks, C rows of a chunk, T positions of a row, I item rows, D width.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding

from jaxrec.config import TrainConfig
from jaxrec.items import table
from jaxrec.items.table import ItemRows
from jaxrec.nn.item_tower import TOWER, ItemTower, without_tower
from jaxrec.objective.sampling import Negatives
from jaxrec.runtime import leaves
from jaxrec.runtime import mesh as mesh_lib
from jaxrec.training.gradient import Metrics, mean_gradient
from jaxrec.training.update import Gradient, Loss, apply_optimizer
from jaxrec.types import Array, Batch, Params, Tree


class TextBatch(NamedTuple):
    """A batch whose items and negatives number rows [I] that the step makes from texts.

    text_of_row: int32 [I], the text of every row, 0 where it has none (padding is row 0).
    tokens, owner, positions: int32 [S, C, T] texts 1, 2, ... packed as in
    `data.item_tokens.PackedTexts`. used: int32 [], chunks that hold texts, the first ones.
    """

    batch: Batch
    negatives: Negatives
    text_of_row: Array
    tokens: Array
    owner: Array
    positions: Array
    used: Array


class TextItems(NamedTuple):
    """What training an item tower needs besides a loss.

    put: (step, a process's rows of its batch) -> the batch with its texts, on the mesh.
    refresh: parameters -> the same with the item table encoded again by their tower; it may be
    interrupted by an exception and called again.
    """

    tower: ItemTower
    put: Callable[[int, Batch], TextBatch]
    refresh: Callable[[Params], Params]


def shardings(mesh: Mesh) -> TextBatch:
    """The NamedSharding of every field: users, and the rows of every chunk, over all devices."""
    everywhere: Tree = mesh_lib.replicated(mesh)
    users: Tree = mesh_lib.batch_sharding(mesh)
    chunk: Tree = NamedSharding(mesh, mesh_lib.spec(None, "batch"))
    return TextBatch(
        batch=Batch(*[users] * len(Batch._fields)),
        negatives=Negatives(everywhere, everywhere),
        text_of_row=everywhere,
        tokens=chunk,
        owner=chunk,
        positions=chunk,
        used=everywhere,
    )


def encode(tower: ItemTower, params: Params, batch: TextBatch) -> jax.Array:
    """float32 [I, D] vectors of the texts 1, 2, ...; zeros in row 0 and behind the last."""
    chex.assert_rank([batch.tokens, batch.text_of_row], [3, 1])
    count = len(batch.text_of_row)

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
    *,
    is_trained: Callable[[str], bool],
) -> Params:
    """Gradients for the tower's parameters.

    cotangent: float32 [I, D], the gradient for the vectors that `encode` returns. is_trained:
    whether the leaf of a path below the tower has a gradient; others get zeros.
    """
    flat, structure = jax.tree.flatten(params)
    trained = [place for place, name in enumerate(leaves.flatten(params)) if is_trained(name)]
    cotangent = jnp.concatenate([cotangent[1:], jnp.zeros_like(cotangent[:1])])

    def add(chunk: jax.Array, total: list[jax.Array]) -> list[jax.Array]:
        def vectors(trained_leaves: list[jax.Array]) -> jax.Array:
            whole = list(flat)
            for place, leaf in zip(trained, trained_leaves, strict=True):
                whole[place] = leaf
            params = jax.tree.unflatten(structure, whole)
            return tower.vectors(params, *_chunk(batch, chunk), len(batch.text_of_row))

        _, back = jax.vjp(vectors, [flat[place] for place in trained])
        return jax.tree.map(jnp.add, total, back(cotangent)[0])

    gradients = [jnp.zeros_like(leaf) for leaf in flat]
    sums = jax.lax.fori_loop(0, batch.used, add, [gradients[place] for place in trained])
    for place, leaf in zip(trained, sums, strict=True):
        gradients[place] = leaf
    return jax.tree.unflatten(structure, gradients)


def _chunk(batch: TextBatch, number: jax.Array) -> tuple[Array, Array, Array]:
    """(tokens, owner, positions) int32 [C, T] of chunk number `number`."""
    return batch.tokens[number], batch.owner[number], batch.positions[number]


@dataclasses.dataclass(frozen=True)
class TextUpdate:
    """An `Update` for a `TextBatch`: texts are encoded once, for all microbatches.

    The loss is given the vectors of the batch's items and its negatives. An item without text has
    the mean vector of the item table. optimizer: of all parameters; frozen: paths that stay as they
    are, the catalog's item table among them.
    """

    loss: Loss
    tower: ItemTower
    optimizer: optax.GradientTransformation
    frozen: frozenset[str]
    config: TrainConfig
    mesh: Mesh

    @property
    def batch_shardings(self) -> Tree:
        """The shardings of the batches that `gradient` takes."""
        return shardings(self.mesh)

    def init(self, params: Params) -> Tree:
        """The optimizer's state before the first step."""
        return self.optimizer.init(params)

    def gradient(
        self, params: Params, batch: TextBatch, rng: jax.Array, sampling: Tree
    ) -> Gradient:
        """The mean gradient over the global batch."""
        del sampling  # negatives are part of the batch
        catalog, rest = table.split(without_tower(params))
        mean, everywhere = rest[table.ITEM][table.MEAN], mesh_lib.replicated(self.mesh)
        without_text = (batch.text_of_row == 0)[:, None]

        def rows_of(vectors: jax.Array) -> jax.Array:
            return jnp.where(without_text, mean[None], vectors[batch.text_of_row])

        vectors = encode(self.tower, params[TOWER], batch)
        embedding, back = jax.vjp(rows_of, jax.lax.with_sharding_constraint(vectors, everywhere))

        def summed_loss(
            trained: tuple[Params, jax.Array], microbatch: Batch, key: jax.Array
        ) -> tuple[jax.Array, jax.Array, Metrics]:
            params, embedding = trained
            rows = ItemRows(embedding)
            return self.loss(
                params, microbatch, rng=key, train=True, negatives=batch.negatives, rows=rows
            )

        value, metrics, (gradients, row_gradients) = mean_gradient(
            summed_loss,
            (rest, embedding),
            batch.batch,
            rng,
            microbatches=self.config.grad_accum_steps,
            mesh=self.mesh,
        )
        (cotangent,) = back(row_gradients)
        cotangent = jax.lax.with_sharding_constraint(cotangent, everywhere)
        tower_gradients = pull_back(
            self.tower, params[TOWER], batch, cotangent, is_trained=self._is_trained
        )
        computed = jnp.asarray(batch.used) * batch.tokens[0].size
        present = jnp.maximum(jnp.sum(batch.owner > 0), 1)
        metrics = {**metrics, "positions_per_word": computed / present}
        zeros: dict[str, Array] = {k: jnp.zeros_like(leaf) for k, leaf in catalog.items()}
        tree = {**table.join(zeros, gradients), TOWER: tower_gradients}
        return Gradient.whole(value, metrics, tree)

    def _is_trained(self, path: str) -> bool:
        """Whether training moves the parameter of a path below the tower."""
        return f"{TOWER}/{path}" not in self.frozen

    def apply(
        self,
        gradient: Gradient,
        params: Params,
        opt_state: Tree,
        *,
        step: jax.Array,
        finite: jax.Array,
    ) -> tuple[Params, Tree]:
        """Parameters and optimizer state after the step."""
        del step  # the optimizer counts for itself
        return apply_optimizer(self.optimizer, gradient.tree, params, opt_state, finite=finite)
