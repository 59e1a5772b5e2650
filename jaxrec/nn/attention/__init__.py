"""Attention over a `SegmentLayout`: one entry point, `attend`, and a table of backends.

`dense` computes every query-key pair and masks: the readable reference, for any layout. `blocked`
computes only blocks that hold visible pairs, exactly (docs/method.md). Where they lie is for the
layout to decide: causal blocks and rectangles of earlier tokens (`blocked.attend`) or a band
(`banded.attend`). Neither builds a mask per head or per user. `fused` is `blocked` in kernels,
for TPU (`fused.attend`) and for GPUs (`hopper.attend`).

Kinds: `softmax` (scaled dot product, arXiv 1706.03762 eq. 1) and `pointwise` (HSTU, arXiv
2402.17152 eq. 2), see `weights`.

Dimension letters: B users, T positions, C cached tokens, N heads, H head width, s segments of
a run, P positions of one segment, K keys.
"""

from typing import Any

import chex
import jax

from jaxrec.layout import SegmentLayout, Structure
from jaxrec.nn.attention import banded, blocked, dense
from jaxrec.nn.attention.interface import Backend, Bias, Cached, Inputs
from jaxrec.nn.attention.weights import Kind, Weigh, Weighing
from jaxrec.types import Array

__all__ = ["BACKENDS", "Backend", "Bias", "Cached", "Inputs", "Kind", "Weigh", "attend"]


def attend(
    q: Array,
    k: Array,
    v: Array,
    layout: SegmentLayout,
    valid: Array,
    *,
    kind: Kind,
    scale: float = 1.0,
    normalizer: float = 1.0,
    bias: Bias | None = None,
    cached: Cached | None = None,
    backend: str = "blocked",
) -> jax.Array:
    """Attention output [B, T, N, H] of queries [B, T, N, H] under the layout's visibility.

    k, v: [B, T, N, H], keys and values of the same positions; valid: bool [B, T], which of them
    exist; cached: K/V of `layout.num_cached` earlier tokens. Logits are `scale * q.k + bias`;
    normalizer: divisor of `pointwise`. Rows of positions that do not exist are finite and
    meaningless. The head width of v may differ from that of q and k.

    Raises ValueError on an unknown backend, on one that the layout has no blocks for, and when
    the cache does not fit the layout.
    """
    if backend not in BACKENDS:
        raise ValueError(f"attention backend {backend!r}: known are {', '.join(BACKENDS)}")
    have = 0 if cached is None else cached.k.shape[1]
    if have != layout.num_cached:
        raise ValueError(f"layout expects {layout.num_cached} cached tokens, got {have}")
    chex.assert_rank([q, k, v], 4)
    users, _, heads, _ = q.shape
    chex.assert_shape(q, (users, layout.length, heads, None))
    chex.assert_shape(k, q.shape)
    chex.assert_shape(v, (users, layout.length, heads, None))
    chex.assert_shape(valid, (users, layout.length))
    if cached is not None:
        chex.assert_shape(cached.k, (users, have, heads, k.shape[-1]))
        chex.assert_shape(cached.v, (users, have, heads, v.shape[-1]))
        chex.assert_shape(cached.valid, (users, have))
    inputs = Inputs(q=q * scale, k=k, v=v, valid=valid, cached=cached, bias=bias)
    return BACKENDS[backend](inputs, layout, Weighing(kind, normalizer))


def _by_structure(inputs: Inputs, layout: SegmentLayout, weigh: Weigh) -> jax.Array:
    """The backend that computes the layout's blocks."""
    structure = layout.view.structure
    if structure not in BLOCKS:
        raise ValueError("attention backend 'blocked': a raw view needs dense")
    return BLOCKS[structure](inputs, layout, weigh)


def _fused(inputs: Inputs, layout: SegmentLayout, weigh: Weigh) -> jax.Array:
    """The kernels where there are some for a call; where not, a line says so, once."""
    from jaxrec.nn.attention import accelerators  # Pallas takes a while to import

    platform = accelerators.platform()
    kernels = _kernels_of(platform)
    if kernels is None:
        reason = f"kernels are for TPU and GPU, this is {platform}"
    else:
        reason = kernels.unfit(inputs, layout, weigh)
        if reason is None:
            out: jax.Array = kernels.attend(inputs, layout, weigh)
            return out
    accelerators.say_once(reason)
    return _by_structure(inputs, layout, weigh)


def _kernels_of(platform: str) -> Any:
    """The package of a platform's kernels, which needs no other platform's."""
    if platform == "tpu":
        from jaxrec.nn.attention import fused

        return fused
    if platform in ("gpu", "cuda"):
        from jaxrec.nn.attention import hopper

        return hopper
    return None


# structure of a layout's visible pairs -> what computes its blocks
BLOCKS: dict[Structure, Backend] = {"segments": blocked.attend, "band": banded.attend}
# names of `model.attention`
BACKENDS: dict[str, Backend] = {"dense": dense.attend, "blocked": _by_structure, "fused": _fused}
