"""Losses over next-item predictions. Every loss returns (sum, weight): float32 scalars.

Dimension letters: P positions that predict (padding included), D item width, V items, M negatives.

A position with weight 0 or target 0 counts for nothing, whatever its other values, and costs
little: positions that count are moved to the front and the loop over chunks stops behind them.

`scale` multiplies the logits (the inverse of a temperature). For cosine logits the caller passes
unit vectors.

All losses compute their gradient in the forward pass, chunk by chunk: nothing of size
[P, V] or [P, M] is ever kept, and the logits are computed once. Gradients flow to vectors,
biases, offsets and scale; weights and log q are constants.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import chex
import jax
import jax.numpy as jnp

from jaxrec.objective import chunked
from jaxrec.types import PAD, Array, ItemVectors, Tree

SumWeight: TypeAlias = tuple[jax.Array, jax.Array]


class Offsets(NamedTuple):
    """Added to <x, e> of each position: its positive [P, 1], the shared negatives [P, M]."""

    positive: Array
    negative: Array


class Contrast(NamedTuple):
    """Positions against negatives that all of them share.

    x: [P, D] queries. positives: [P, D] vectors of the targets. negatives: [M, D].
    targets: int32 [P] item ids, 0 is none; negative_ids: int32 [M]. weights: float32 [P].
    offsets: what scores have beside the dot product, differentiable; None: nothing.
    """

    x: Array
    positives: Array
    negatives: Array
    targets: Array
    negative_ids: Array
    weights: Array
    offsets: Offsets | None = None


def unit(x: Array, eps: float = 1e-6) -> jax.Array:
    """`x` [..., D] divided by its length; vectors shorter than `eps` shrink to 0 smoothly.

    Values and gradients are finite everywhere, at 0 too.
    """
    x = jnp.asarray(x)
    square = jnp.sum(jnp.square(x.astype(jnp.float32)), axis=-1, keepdims=True)
    return (x * jax.lax.rsqrt(jnp.maximum(square, eps * eps))).astype(x.dtype)


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
    shared = {"table": table, "scale": jnp.asarray(scale, jnp.float32)}
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


def sampled_softmax(
    contrast: Contrast,
    *,
    log_q: Array | None = None,
    scale: Array | float = 1.0,
    false_negative: float = 1.0,
    chunk: int = 1024,
) -> SumWeight:
    """Cross entropy of each positive against M negatives shared by all positions.

    A negative that is padding, is the position's own target or whose cosine to the positive
    exceeds `false_negative` is left out (arXiv 2601.03479; 1 keeps all but the target itself).

    log_q: [M] log-probability of each negative's draw; its logit is reduced by the log of the
    expected count M·q. The sum over negatives then is an unbiased estimate of the sum over the
    rest of the catalog: the positive is in the denominator with certainty and needs no
    correction (arXiv 2507.09331, section 3; its extra sample weight is not applied).
    """
    loss = functools.partial(_sampled_loss, false_negative)
    return _contrastive(loss, contrast, log_q=log_q, scale=scale, chunk=chunk)


def bce(
    contrast: Contrast,
    *,
    scale: Array | float = 1.0,
    false_negative: float = 1.0,
    chunk: int = 1024,
) -> SumWeight:
    """Binary cross entropy (SASRec, arXiv 1808.09781, equation 7), positive against negatives.

    `-(log σ(s⁺) + Σ log(1 - σ(s⁻))) / (m + 1)` over the m negatives that are not masked;
    masked as in `sampled_softmax`.
    """
    return gbce(contrast, beta=1.0, scale=scale, false_negative=false_negative, chunk=chunk)


def gbce(
    contrast: Contrast,
    *,
    beta: float,
    scale: Array | float = 1.0,
    false_negative: float = 1.0,
    chunk: int = 1024,
) -> SumWeight:
    """Generalised binary cross entropy (gSASRec, arXiv 2308.07192, equation 8).

    `bce` with the positive's probability raised to `beta` (see `gbce_beta`).
    """
    loss = functools.partial(_binary_loss, false_negative, beta)
    return _contrastive(loss, contrast, log_q=None, scale=scale, chunk=chunk)


def gbce_beta(negatives: int, num_items: int, t: float) -> float:
    """β = α(t(1 - 1/α) + 1/α) with the sampled share of the catalog α = M / (V - 1).

    `t` = 0 gives 1 (plain BCE), 1 gives α (fully calibrated); arXiv 2308.07192, equation 9.
    It assumes negatives drawn uniformly.
    """
    alpha = min(1.0, negatives / max(1, num_items - 1))
    return alpha * (t * (1 - 1 / alpha) + 1 / alpha)


# -- full softmax --------------------------------------------------------------------------


def _dot(a: jax.Array, b: jax.Array, contract: tuple[int, int]) -> jax.Array:
    """Matrix product over axis contract[0] of a and contract[1] of b, float32 accumulation."""
    axes = (((contract[0],), (contract[1],)), ((), ()))
    return jax.lax.dot_general(a, b, axes, preferred_element_type=jnp.float32)


def _parts(table: jax.Array, vocab_chunk: int) -> int:
    return -(-table.shape[0] // vocab_chunk)


def _part(table: jax.Array, vocab_chunk: int, index: Array | int) -> tuple[jax.Array, jax.Array]:
    """First row of a part of the table, and which of its rows are candidates.

    The last part starts early enough to be whole; rows it shares with the one before are not
    its candidates.
    """
    height = min(vocab_chunk, table.shape[0])
    start = jnp.minimum(index * vocab_chunk, table.shape[0] - height)
    ids = start + jnp.arange(height)
    return start, ids >= jnp.maximum(index * vocab_chunk, PAD + 1)


def _logits(x: jax.Array, rows: jax.Array, candidate: jax.Array) -> jax.Array:
    return jnp.where(candidate[None, :], _dot(x, rows.astype(x.dtype), (1, 1)), -jnp.inf)


def _scaled(rows: Tree, shared: Tree) -> jax.Array:
    x = rows["x"]
    return (x.astype(jnp.float32) * shared["scale"]).astype(x.dtype)


def _positive_logit(rows: Tree, shared: Tree) -> jax.Array:
    x, positive = rows["x"].astype(jnp.float32), rows["positive"].astype(jnp.float32)
    score = jnp.sum(x * positive, -1)
    if rows.get("offsets") is not None:
        score = score + rows["offsets"].positive[:, 0]
    return score * shared["scale"]


def _log_normalizer(vocab_chunk: int, x: jax.Array, table: jax.Array) -> jax.Array:
    """[C] logsumexp over the catalog, computed online over parts of the table."""
    height = min(vocab_chunk, table.shape[0])

    def body(index: Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        top, total = carry
        start, candidate = _part(table, vocab_chunk, index)
        rows = jax.lax.dynamic_slice_in_dim(table, start, height)
        logits = _logits(x, rows, candidate)
        new = jnp.maximum(top, jnp.max(logits, -1))
        safe = jnp.where(jnp.isfinite(new), new, 0.0)
        total = total * jnp.exp(top - safe) + jnp.sum(jnp.exp(logits - safe[:, None]), -1)
        return new, total

    zeros = jnp.zeros_like(x[:, 0], jnp.float32)
    first = (zeros - jnp.inf, zeros)
    top, total = jax.lax.fori_loop(0, _parts(table, vocab_chunk), body, first)
    return top + jnp.log(total)


def _full_loss(vocab_chunk: int, rows: Tree, shared: Tree, context: Tree) -> jax.Array:
    del context
    normalizer = _log_normalizer(vocab_chunk, _scaled(rows, shared), shared["table"])
    return normalizer - _positive_logit(rows, shared)


def _full_gradient(
    vocab_chunk: int, rows: Tree, shared: Tree, context: Tree, weights: jax.Array, total: Tree
) -> tuple[jax.Array, Tree, Tree]:
    """Loss and gradients of a chunk.

    d loss / d logit = weight x (probability - [item is the target]), pushed through both matrix
    products; the target's part is done on the gathered rows, not on [C, V] one-hots.
    """
    del context
    table, scale = shared["table"], shared["scale"]
    x, scaled = rows["x"], _scaled(rows, shared)
    height = min(vocab_chunk, table.shape[0])
    weight = weights[:, None]

    def back(
        unnormalised: jax.Array, part: jax.Array, factor: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        unnormalised = unnormalised.astype(x.dtype)
        mean = _dot(unnormalised, part.astype(x.dtype), (1, 0)) * factor
        right = (scaled.astype(jnp.float32) * factor).astype(x.dtype)
        return mean, _dot(unnormalised, right, (0, 0))

    if _parts(table, vocab_chunk) == 1:
        _, candidate = _part(table, vocab_chunk, 0)
        logits = _logits(scaled, table, candidate)
        top = jnp.max(logits, -1)
        unnormalised = jnp.exp(logits - top[:, None])
        mass = jnp.sum(unnormalised, -1)
        normalizer = top + jnp.log(mass)
        mean, table_gradient = back(unnormalised, table, weight / mass[:, None])
        table_total = total["table"] + table_gradient
    else:
        normalizer = _log_normalizer(vocab_chunk, scaled, table)

        def body(index: Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            mean, accumulated = carry
            start, candidate = _part(table, vocab_chunk, index)
            part = jax.lax.dynamic_slice_in_dim(table, start, height)
            probability = jnp.exp(_logits(scaled, part, candidate) - normalizer[:, None])
            own, gradient = back(probability, part, weight)
            before = jax.lax.dynamic_slice_in_dim(accumulated, start, height)
            after = before + gradient
            return mean + own, jax.lax.dynamic_update_slice_in_dim(accumulated, after, start, 0)

        first = (jnp.zeros_like(x, jnp.float32), total["table"])
        mean, table_total = jax.lax.fori_loop(0, _parts(table, vocab_chunk), body, first)

    positive = rows["positive"].astype(jnp.float32)
    direction = mean - weight * positive  # gradient for scale · x
    wide = x.astype(jnp.float32)
    loss = jnp.sum(weights * (normalizer - _positive_logit(rows, shared)))
    gradient = {"x": scale * direction, "positive": -scale * weight * wide}
    scale_total = total["scale"] + jnp.sum(wide * direction)
    return loss, gradient, {"table": table_total, "scale": scale_total}


# -- losses against shared negatives ---------------------------------------------------------


def _contrastive(
    loss: Callable[[Tree, Tree, Tree], jax.Array],
    contrast: Contrast,
    *,
    log_q: Array | None,
    scale: Array | float,
    chunk: int,
) -> SumWeight:
    """(sum, weight) of `loss(rows, shared, context)` [C]; its gradient by autodiff, by chunks."""
    chex.assert_equal_shape([contrast.x, contrast.positives])
    chex.assert_equal_shape([contrast.targets, contrast.weights])

    def gradient(
        rows: Tree, shared: Tree, context: Tree, weights: jax.Array, total: Tree
    ) -> tuple[jax.Array, Tree, Tree]:
        def weighted(rows: Tree, shared: Tree) -> jax.Array:
            values = loss(rows, shared, context)
            return jnp.sum(jnp.where(weights != 0, weights * values, 0.0))

        value, (of_rows, of_shared) = jax.value_and_grad(weighted, (0, 1))(rows, shared)
        return value, of_rows, jax.tree.map(lambda t, g: t + g, total, of_shared)

    targets = contrast.targets
    return chunked.total(
        chunked.Kernel(loss, gradient),
        chunk,
        {"x": contrast.x, "positive": contrast.positives, "offsets": contrast.offsets},
        {"negatives": contrast.negatives, "scale": jnp.asarray(scale, jnp.float32)},
        context={
            "rows": {"targets": targets},
            "shared": {"ids": contrast.negative_ids, "log_q": log_q},
        },
        weights=jnp.where(targets == PAD, 0.0, jnp.asarray(contrast.weights, jnp.float32)),
    )


def _negative_logits(
    false_negative: float, rows: Tree, shared: Tree, context: Tree
) -> tuple[jax.Array, jax.Array]:
    """Logits [C, M] and which of them count."""
    x, negatives = _scaled(rows, shared), shared["negatives"].astype(rows["x"].dtype)
    ids = context["shared"]["ids"]
    allowed = (ids[None, :] != context["rows"]["targets"][:, None]) & (ids != PAD)[None, :]
    if false_negative < 1:
        positives, others = jax.lax.stop_gradient((rows["positive"], negatives))
        cosine = _dot(unit(positives.astype(x.dtype)), unit(others), (1, 1))
        allowed &= cosine <= false_negative
    logits = _dot(x, negatives, (1, 1))
    if rows["offsets"] is not None:
        logits = logits + rows["offsets"].negative * shared["scale"]
    return logits, allowed


def _sampled_loss(false_negative: float, rows: Tree, shared: Tree, context: Tree) -> jax.Array:
    positive = _positive_logit(rows, shared)
    logits, allowed = _negative_logits(false_negative, rows, shared, context)
    log_count = jnp.log(jnp.float32(logits.shape[1]))
    if context["shared"]["log_q"] is not None:
        logits = logits - (context["shared"]["log_q"] + log_count)[None, :]
    logits = jnp.where(allowed, logits, -jnp.inf)
    top = jax.lax.stop_gradient(jnp.maximum(positive, jnp.max(logits, -1)))
    rest = jnp.sum(jnp.exp(logits - top[:, None]), -1)
    return top + jnp.log(jnp.exp(positive - top) + rest) - positive


def _binary_loss(
    false_negative: float, beta: float, rows: Tree, shared: Tree, context: Tree
) -> jax.Array:
    positive = _positive_logit(rows, shared)
    logits, allowed = _negative_logits(false_negative, rows, shared, context)
    # log σ(s)^β = -β softplus(-s): stable where σ itself underflows
    rest = jnp.sum(jnp.where(allowed, jax.nn.softplus(logits), 0.0), -1)
    return (beta * jax.nn.softplus(-positive) + rest) / (jnp.sum(allowed, -1) + 1)
