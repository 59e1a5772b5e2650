"""Cross entropy against the whole catalog, in chunks of positions and items.

Dimension letters: P positions, C of a chunk, D item width, V items.

Inside the kernels the table is on its side, [D, V + 1]: the product that makes its gradient then
writes rows of V + 1 numbers, which a CPU does nearly twice as fast as rows of D.
"""

import functools

import chex
import jax
import jax.numpy as jnp

from jaxrec.objective import chunked
from jaxrec.objective.chunked import SumWeight
from jaxrec.objective.logits import dot, positive_logit, scaled_queries
from jaxrec.types import PAD, Array, ItemVectors, Tree


def full_softmax(
    x: Array,
    items: ItemVectors,
    targets: Array,
    weights: Array,
    *,
    scale: Array | float = 1.0,
    chunk: int = 1024,
    vocab_chunk: int = 16384,
) -> SumWeight:
    """Cross entropy of each target against the whole catalog.

    x: [P, D]; items: all of the catalog, [V + 1, D], row 0 is padding and no candidate; targets:
    int32 [P]; weights: float32 [P]. `chunk` positions meet `vocab_chunk` items at a time: peak
    memory is chunk x vocab_chunk logits however large P and V are. Matrix products take `x`'s
    type and accumulate in float32. A catalog of at most `vocab_chunk` items costs three of them
    (logits, two gradients); a larger one four, as logits are computed again.
    """
    chex.assert_equal_shape_prefix([x, targets, weights], 1)
    x, table = with_bias(x, items)
    rows = {"x": x, "positive": jnp.take(table, targets, axis=0)}
    kernel = chunked.Kernel(
        functools.partial(_full_loss, vocab_chunk), functools.partial(_full_gradient, vocab_chunk)
    )
    shared = {"columns": table.T, "scale": jnp.asarray(scale, jnp.float32)}
    weights = jnp.where(targets == PAD, 0.0, jnp.asarray(weights, jnp.float32))
    context: Tree = {"rows": {"targets": targets}, "shared": {}}
    return chunked.total(kernel, chunk, rows, shared, context=context, weights=weights)


def with_bias(x: Array, items: ItemVectors) -> tuple[Array, Array]:
    """Queries and a table whose dot products contain the biases.

    Inside a softmax kernel a bias is one more dimension, in which every query is 1: the table's
    gradient then holds that of the biases.
    """
    if items.bias is None:
        return x, items.vectors
    ones = jnp.ones_like(x[..., :1])
    table = jnp.concatenate([items.vectors, items.bias[:, None].astype(items.vectors.dtype)], -1)
    return jnp.concatenate([x, ones], axis=-1), table


def _num_blocks(columns: jax.Array, vocab_chunk: int) -> int:
    """Blocks of at most `vocab_chunk` items that cover the catalog."""
    return -(-columns.shape[1] // vocab_chunk)


def _block(columns: jax.Array, vocab_chunk: int, index: Array | int) -> tuple[jax.Array, jax.Array]:
    """(first item of a block of the catalog, bool [items]: which of its items are candidates).

    The last block starts early enough to be whole; items it shares with the one before are not
    its candidates.
    """
    size = min(vocab_chunk, columns.shape[1])
    start = jnp.minimum(index * vocab_chunk, columns.shape[1] - size)
    ids = start + jnp.arange(size)
    return start, ids >= jnp.maximum(index * vocab_chunk, PAD + 1)


def _logits(x: jax.Array, columns: jax.Array, candidate: jax.Array) -> jax.Array:
    """[C, items] logits of a block of the catalog; -inf for items that are no candidates."""
    return jnp.where(candidate[None, :], dot(x, columns.astype(x.dtype), (1, 0)), -jnp.inf)


def _log_normalizer(vocab_chunk: int, x: jax.Array, columns: jax.Array) -> jax.Array:
    """[C] logsumexp over the catalog, computed online over its blocks."""
    size = min(vocab_chunk, columns.shape[1])

    def body(index: Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        top, total = carry
        start, candidate = _block(columns, vocab_chunk, index)
        block = jax.lax.dynamic_slice_in_dim(columns, start, size, axis=1)
        logits = _logits(x, block, candidate)
        new = jnp.maximum(top, jnp.max(logits, -1))
        safe = jnp.where(jnp.isfinite(new), new, 0.0)
        total = total * jnp.exp(top - safe) + jnp.sum(jnp.exp(logits - safe[:, None]), -1)
        return new, total

    zeros = jnp.zeros_like(x[:, 0], jnp.float32)
    first = (zeros - jnp.inf, zeros)
    top, total = jax.lax.fori_loop(0, _num_blocks(columns, vocab_chunk), body, first)
    return top + jnp.log(total)


def _full_loss(vocab_chunk: int, rows: Tree, shared: Tree, context: Tree) -> jax.Array:
    """[C] cross entropy of a chunk."""
    del context
    normalizer = _log_normalizer(vocab_chunk, scaled_queries(rows, shared), shared["columns"])
    return normalizer - positive_logit(rows, shared)


def _full_gradient(
    vocab_chunk: int, rows: Tree, shared: Tree, context: Tree, weights: jax.Array, total: Tree
) -> tuple[jax.Array, Tree, Tree]:
    """Loss and gradients of a chunk.

    d loss / d logit = weight x (probability - [item is the target]), pushed through both matrix
    products; the target's share is computed on the gathered rows, not on [C, V] one-hots.
    """
    del context
    columns, scale = shared["columns"], shared["scale"]
    x, scaled = rows["x"], scaled_queries(rows, shared)
    size = min(vocab_chunk, columns.shape[1])
    weight = weights[:, None]

    def back(
        unnormalised: jax.Array, block: jax.Array, factor: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """(probability-weighted mean of the block's items [C, D], gradient for its columns)."""
        unnormalised = unnormalised.astype(x.dtype)
        mean = dot(unnormalised, block.astype(x.dtype), (1, 1)) * factor
        left = (scaled.astype(jnp.float32) * factor).astype(x.dtype)
        return mean, dot(left, unnormalised, (0, 0))

    if _num_blocks(columns, vocab_chunk) == 1:
        _, candidate = _block(columns, vocab_chunk, 0)
        logits = _logits(scaled, columns, candidate)
        top = jnp.max(logits, -1)
        unnormalised = jnp.exp(logits - top[:, None])
        mass = jnp.sum(unnormalised, -1)
        normalizer = top + jnp.log(mass)
        mean, gradient = back(unnormalised, columns, weight / mass[:, None])
        columns_total = total["columns"] + gradient
    else:
        normalizer = _log_normalizer(vocab_chunk, scaled, columns)

        def body(index: Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            mean, accumulated = carry
            start, candidate = _block(columns, vocab_chunk, index)
            block = jax.lax.dynamic_slice_in_dim(columns, start, size, axis=1)
            probability = jnp.exp(_logits(scaled, block, candidate) - normalizer[:, None])
            of_block, gradient = back(probability, block, weight)
            before = jax.lax.dynamic_slice_in_dim(accumulated, start, size, axis=1)
            after = before + gradient
            return mean + of_block, jax.lax.dynamic_update_slice_in_dim(
                accumulated, after, start, 1
            )

        first = (jnp.zeros_like(x, jnp.float32), total["columns"])
        mean, columns_total = jax.lax.fori_loop(0, _num_blocks(columns, vocab_chunk), body, first)

    positive = rows["positive"].astype(jnp.float32)
    direction = mean - weight * positive  # gradient for scale · x
    wide = x.astype(jnp.float32)
    loss = jnp.sum(weights * (normalizer - positive_logit(rows, shared)))
    of_rows = {"x": scale * direction, "positive": -scale * weight * wide}
    scale_total = total["scale"] + jnp.sum(wide * direction)
    return loss, of_rows, {"columns": columns_total, "scale": scale_total}
