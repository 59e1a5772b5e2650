"""Attention over a `SegmentLayout`: one entry point, a table of backends.

`dense` computes every query-key pair and masks: the readable reference. `blocked` computes
only the block structure of the visibility rule, S(n+k)^2 + S(n+k) S k pairs instead of
(S(n+k))^2, exactly (DESIGN §3): a causal block inside each segment and a rectangle against
the tokens of earlier segments. Neither builds a mask per head or per user.

Kinds: `softmax` (scaled dot product) and `pointwise` (HSTU, arXiv 2402.17152 eq. 2:
silu(q k + bias) / normalizer, no normalisation over keys; the normalizer is a constant of the
layout, so that a cached and a full computation agree).

Dimension letters: B users, T positions, C cached tokens, N heads, H head width, s segments of
a run, P positions of one segment, K token keys.
"""

from typing import Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.layout import Run, SegmentLayout

Kind = Literal["softmax", "pointwise"]

# Query rows computed at once inside a long segment: rows a..b see keys 0..b only, which
# halves the work of a long causal block and bounds its memory.
CHUNK = 256
_NEG = -1e30


class Cached(NamedTuple):
    """K/V of earlier tokens: k, v [B, C, N, H], valid [B, C]."""

    k: jax.Array
    v: jax.Array
    valid: jax.Array


class Bias(Protocol):
    """What is added to the logits, computed block by block."""

    def own(self, run: Run, start: int, stop: int) -> jax.Array:
        """[B|1, s|1, N, stop - start, stop]: rows start..stop of a segment, keys 0..stop."""
        ...

    def earlier(self, run: Run, keys: np.ndarray) -> jax.Array:
        """[B|1, s, N, P|1, K]: a run's positions against token keys (indices of the key axis)."""
        ...

    def dense(self) -> jax.Array:
        """[B|1, N, T, C + T]: every pair."""
        ...


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    layout: SegmentLayout,
    valid: jax.Array,
    *,
    kind: Kind,
    scale: float = 1.0,
    normalizer: float = 1.0,
    bias: Bias | None = None,
    cached: Cached | None = None,
    backend: str = "blocked",
) -> jax.Array:
    """Attention output [B, T, N, H] of queries [B, T, N, H] under the layout's visibility.

    k, v: [B, T, N, H] own keys and values; valid: [B, T] which positions exist; cached: K/V
    of `layout.num_cached` earlier tokens. Logits are `scale * q.k + bias`. Rows of positions
    that do not exist are finite and meaningless. Raises ValueError on an unknown backend or
    when the cache does not fit the layout.
    """
    if backend not in BACKENDS:
        raise ValueError(f"attention backend {backend!r}: known are {', '.join(BACKENDS)}")
    have = 0 if cached is None else cached.k.shape[1]
    if have != layout.num_cached:
        raise ValueError(f"layout expects {layout.num_cached} cached tokens, got {have}")
    weigh = _softmax if kind == "softmax" else _pointwise
    return BACKENDS[backend](q * scale, k, v, layout, valid, weigh, normalizer, bias, cached)


def _pointwise(logits, masks, normalizer):
    """silu(logits) / normalizer where visible, 0 elsewhere; one array per key group."""
    return [
        jnp.where(m, jax.nn.silu(x) / normalizer, 0) for x, m in zip(logits, masks, strict=True)
    ]


def _softmax(logits, masks, normalizer):
    """Softmax over the union of the key groups."""
    del normalizer
    logits = [jnp.where(m, x, _NEG) for x, m in zip(logits, masks, strict=True)]
    top = logits[0].max(-1, keepdims=True)
    for x in logits[1:]:
        top = jnp.maximum(top, x.max(-1, keepdims=True))
    top = jax.lax.stop_gradient(top)
    weights = [jnp.exp(x - top) for x in logits]
    total = weights[0].sum(-1, keepdims=True)
    for w in weights[1:]:
        total = total + w.sum(-1, keepdims=True)
    return [w / total for w in weights]


def _logits(equation, q, k, bias):
    wide = jnp.promote_types(q.dtype, jnp.float32)
    logits = jnp.einsum(equation, q, k, preferred_element_type=wide)
    return logits if bias is None else logits + bias


def _dense(q, k, v, layout, valid, weigh, normalizer, bias, cached):
    if cached is not None:
        k = jnp.concatenate([cached.k, k], axis=1)
        v = jnp.concatenate([cached.v, v], axis=1)
        valid = jnp.concatenate([cached.valid, valid], axis=1)
    mask = layout.visible[None, None] & valid[:, None, None, :]
    logits = _logits("bqnh,bknh->bnqk", q, k, None if bias is None else bias.dense())
    (weights,) = weigh([logits], [mask], normalizer)
    return jnp.einsum("bnqk,bknh->bqnh", weights.astype(v.dtype), v)


def _blocked(q, k, v, layout, valid, weigh, normalizer, bias, cached):
    tokens = layout.token_positions
    outputs = []
    for run in layout.runs():
        keys, seen = earlier_tokens(layout, run)
        take = tokens[: len(keys) - layout.num_cached]
        token_k, token_v, token_valid = k[:, take], v[:, take], valid[:, take]
        if cached is not None:
            token_k = jnp.concatenate([cached.k, token_k], axis=1)
            token_v = jnp.concatenate([cached.v, token_v], axis=1)
            token_valid = jnp.concatenate([cached.valid, token_valid], axis=1)
        split = (q.shape[0], run.count, run.length)
        window = slice(run.start, run.stop)
        q_run, k_run, v_run = (x[:, window].reshape(*split, *x.shape[2:]) for x in (q, k, v))
        valid_run = valid[:, window].reshape(split)
        token_mask = seen[None, :, None, None, :] & token_valid[:, None, None, None, :]
        token_bias = bias.earlier(run, keys) if bias is not None and len(keys) else None
        rows = []
        for a in range(0, run.length, CHUNK):
            b = min(a + CHUNK, run.length)
            q_rows = q_run[:, :, a:b]
            own_bias = None if bias is None else bias.own(run, a, b)
            logits = [_logits("bspnh,bsqnh->bsnpq", q_rows, k_run[:, :, :b], own_bias)]
            causal = np.arange(b)[None] <= np.arange(a, b)[:, None]
            masks = [causal[None, None, None] & valid_run[:, :, None, None, :b]]
            if len(keys):
                cut = token_bias
                if cut is not None and cut.shape[3] > 1:
                    cut = cut[:, :, :, a:b]
                logits.append(_logits("bspnh,bknh->bsnpk", q_rows, token_k, cut))
                masks.append(token_mask)
            weights = weigh(logits, masks, normalizer)
            row = jnp.einsum("bsnpq,bsqnh->bspnh", weights[0].astype(v.dtype), v_run[:, :, :b])
            if len(keys):
                row += jnp.einsum("bsnpk,bknh->bspnh", weights[1].astype(v.dtype), token_v)
            rows.append(row)
        out = rows[0] if len(rows) == 1 else jnp.concatenate(rows, axis=2)
        outputs.append(out.reshape(q.shape[0], run.count * run.length, *out.shape[3:]))
    return outputs[0] if len(outputs) == 1 else jnp.concatenate(outputs, axis=1)


def earlier_tokens(layout: SegmentLayout, run: Run) -> tuple[np.ndarray, np.ndarray]:
    """Token keys a run computes against.

    Returns their indices on the key axis [K] (cached tokens first) and which segment of the
    run sees which of them [s, K].
    """
    own = layout.token_positions[: layout.tokens_before(run) - layout.num_cached]
    keys = np.concatenate([np.arange(layout.num_cached), layout.num_cached + own])
    query = np.arange(run.first, run.first + run.count)
    age = query[:, None] - layout.key_segment[keys][None]
    return keys, (age > 0) & (age <= layout.max_segments)


BACKENDS = {"dense": _dense, "blocked": _blocked}
