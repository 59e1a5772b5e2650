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
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxrec.objective import chunked
from jaxrec.objective.chunked import SumWeight
from jaxrec.objective.logits import dot, positive_logit, scaled_queries, unit
from jaxrec.types import PAD, Array, Tree


class Offsets(NamedTuple):
    """Added to <x, e> of each position: its positive [P, 1], the shared negatives [P, M]."""

    positive: Array
    negative: Array


class Contrast(NamedTuple):
    """Positions against negatives that all of them share.

    x: [P, D] queries. positives: [P, D] vectors of the targets. negatives: [M, D].
    targets: int32 [P] item ids, 0 is none; negative_ids: int32 [M]. weights: float32 [P].
    offsets: added to the dot products, differentiable; None: nothing is.
    """

    x: Array
    positives: Array
    negatives: Array
    targets: Array
    negative_ids: Array
    weights: Array
    offsets: Offsets | None = None


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


# -- losses against shared negatives ---------------------------------------------------------


def _contrastive(
    loss: Callable[[Tree, Tree, Tree], jax.Array],
    contrast: Contrast,
    *,
    log_q: Array | None,
    scale: Array | float,
    chunk: int,
) -> SumWeight:
    """(sum, weight) of `loss(rows, shared, context) -> [C]`, its gradient by autodiff.

    Rows, shared and context as in `chunked.Kernel`: {"x" [C, D], "positive" [C, D], "offsets"},
    {"negatives" [D, M], "scale" []} and {"rows": {"targets" [C]}, "shared": {"ids" [M], "log_q"
    [M] or None}}. Negatives are columns for the same reason as in `full_softmax`.
    """
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
        {"negatives": contrast.negatives.T, "scale": jnp.asarray(scale, jnp.float32)},
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
    x, negatives = scaled_queries(rows, shared), shared["negatives"].astype(rows["x"].dtype)
    ids = context["shared"]["ids"]
    allowed = (ids[None, :] != context["rows"]["targets"][:, None]) & (ids != PAD)[None, :]
    if false_negative < 1:
        positives, others = jax.lax.stop_gradient((rows["positive"], negatives))
        cosine = dot(unit(positives.astype(x.dtype)), unit(others.T), (1, 1))
        allowed &= cosine <= false_negative
    logits = dot(x, negatives, (1, 0))
    if rows["offsets"] is not None:
        logits = logits + rows["offsets"].negative * shared["scale"]
    return logits, allowed


def _sampled_loss(false_negative: float, rows: Tree, shared: Tree, context: Tree) -> jax.Array:
    """[C] of `sampled_softmax`."""
    positive = positive_logit(rows, shared)
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
    """[C] of `gbce`."""
    positive = positive_logit(rows, shared)
    logits, allowed = _negative_logits(false_negative, rows, shared, context)
    # log σ(s)^β = -β softplus(-s): stable where σ itself underflows
    rest = jnp.sum(jnp.where(allowed, jax.nn.softplus(logits), 0.0), -1)
    return (beta * jax.nn.softplus(-positive) + rest) / (jnp.sum(allowed, -1) + 1)
