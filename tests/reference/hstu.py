"""HSTU (arXiv 2402.17152 eqs. 1-3) in NumPy, float64."""

import numpy as np

from tests.reference.attention import attend, silu


def layer_norm(x, eps=1e-6):
    """Without affine parameters, over the last axis."""
    x = np.float64(x)
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps)


def layer(x, uvqk, out, out_bias, visible, valid, *, heads, normalizer, bias=None, act="silu"):
    """One layer: x [B, T, D], uvqk [D, 4D] (columns u, v, q, k), out [D, D], out_bias [D].

    visible [T, T], valid [B, T], bias [B, N, T, T].
    """
    batch, positions, width = x.shape
    mixed = layer_norm(x) @ np.float64(uvqk)
    if act == "silu":
        mixed = silu(mixed)
    u, v, q, k = (mixed[..., part * width : (part + 1) * width] for part in range(4))
    split = (batch, positions, heads, width // heads)
    y = attend(
        q.reshape(split),
        k.reshape(split),
        v.reshape(split),
        visible,
        valid,
        kind="pointwise",
        normalizer=normalizer,
        bias=bias,
    )
    return x + (u * layer_norm(y.reshape(x.shape))) @ np.float64(out) + out_bias
