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

import functools
from typing import Any, Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.layout import RawView, Run, SegmentLayout
from jaxrec.nn import semi_local

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

    def segments(self, run: Run, keys: np.ndarray) -> Any:
        """What `block` needs of each segment of a run: a pytree of arrays [s, ...].

        keys: indices of the earlier tokens on the key axis.
        """
        ...

    def block(self, segment: Any, run: Run, start: int, stop: int) -> tuple[Any, Any]:
        """Rows start..stop of one segment against its own keys 0..stop and earlier tokens.

        segment: an entry of `segments`. [B|1, N|1, rows|1, stop|1], [B|1, N|1, rows|1, K|1].
        """
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
    if isinstance(layout, RawView) and backend != "dense":
        raise ValueError(f"attention backend {backend!r}: a raw view needs dense")
    weigh = _softmax if kind == "softmax" else _pointwise
    compute: Any = BACKENDS[backend]
    if backend == "blocked" and isinstance(layout, semi_local.SemiLocalLayout):
        compute = semi_local.attend
    return compute(q * scale, k, v, layout, valid, weigh, normalizer, bias, cached)


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


class _Segments(NamedTuple):
    """A run's segments s, or one of them without the leading axis.

    q, k, v: [s, B, N, P, H]; valid: [s, B, P]; seen: [s, K] which earlier tokens the rule lets
    it see; bias: what `Bias.segments` returned.
    """

    q: jax.Array
    k: jax.Array
    v: jax.Array
    valid: jax.Array
    seen: jax.Array
    bias: Any


def _blocked(q, k, v, layout, valid, weigh, normalizer, bias, cached):
    outputs = []
    for run in layout.runs():
        keys, seen = earlier_tokens(layout, run)
        take = layout.token_positions[: len(keys) - layout.num_cached]
        tokens = Cached(k[:, take], v[:, take], valid[:, take])
        if cached is not None:
            both = zip(cached, tokens, strict=True)
            tokens = Cached(*(jnp.concatenate(pair, axis=1) for pair in both))
        tokens = Cached(jnp.swapaxes(tokens.k, 1, 2), jnp.swapaxes(tokens.v, 1, 2), tokens.valid)
        learned = None if bias is None else bias.segments(run, keys)
        qkv = (jnp.swapaxes(_cut(x, run), 2, 3) for x in (q, k, v))
        segments = _Segments(*qkv, _cut(valid, run), jnp.asarray(seen), learned)  # type: ignore[call-arg]
        one = functools.partial(_segment, run, tokens, weigh, normalizer, bias)
        out = jnp.transpose(_over_segments(one, segments, run.count), (1, 0, 3, 2, 4))
        outputs.append(out.reshape(q.shape[0], run.count * run.length, *q.shape[2:]))
    return outputs[0] if len(outputs) == 1 else jnp.concatenate(outputs, axis=1)


def _cut(x, run):
    """A run's positions of [B, T, ...] as [s, B, P, ...]."""
    x = x[:, run.start : run.stop]
    return jnp.swapaxes(x.reshape(-1, run.count, run.length, *x.shape[2:]), 0, 1)


def _segment(run, tokens, weigh, normalizer, bias, own):
    """[B, N, P, H] of one segment, `CHUNK` rows at a time."""
    settings = run, tokens, weigh, normalizer, bias
    parts = []
    for start in range(0, run.length, CHUNK):
        rows = functools.partial(_rows, start, min(start + CHUNK, run.length), *settings)
        # weights are cheaper to compute again than to write out and read back
        parts.append(jax.checkpoint(rows)(own))
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=2)


def _rows(start, stop, run, tokens, weigh, normalizer, bias, own):
    """Queries start..stop of a segment against its own keys and earlier tokens."""
    q, k, v = own.q[:, :, start:stop], own.k[:, :, :stop], own.v[:, :, :stop]
    biases = (None, None) if bias is None else bias.block(own.bias, run, start, stop)
    causal = np.arange(stop)[None] <= np.arange(start, stop)[:, None]
    logits = [_logits("bnph,bnqh->bnpq", q, k, biases[0])]
    masks = [causal[None, None] & own.valid[:, None, None, :stop]]
    values = [v]
    if tokens.k.shape[2]:
        logits.append(_logits("bnph,bnqh->bnpq", q, tokens.k, biases[1]))
        masks.append((own.seen[None] & tokens.valid)[:, None, None])
        values.append(tokens.v)
    weights = weigh(logits, masks, normalizer)
    return sum(
        jnp.einsum("bnpq,bnqh->bnph", weight.astype(v.dtype), value)
        for weight, value in zip(weights, values, strict=True)
    )


def _over_segments(one, segments, count):
    """`one` of every leading index: all at once where there are cores enough, else in turn.

    One segment's weights fit a CPU's cache, those of all do not: in turn is several times faster
    there. The choice is made when the program is compiled for its platform.
    """
    if count == 1:
        return one(jax.tree.map(lambda x: x[0], segments))[None]
    return jax.lax.platform_dependent(
        segments, cpu=functools.partial(jax.lax.map, one), default=jax.vmap(one)
    )


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
