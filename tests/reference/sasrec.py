"""SASRec blocks in NumPy, float64.

`classic`: arXiv 1808.09781 §3.2 in the post-norm form of arXiv 1706.03762. `modern`: pre-norm,
SwiGLU (arXiv 2002.05202) and gated residuals (LiGR, arXiv 2502.03417).
"""

import numpy as np

from tests.reference.attention import attend, sigmoid, silu


def layer_norm(x, weights, eps=1e-6):
    x = np.float64(x)
    normal = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps)
    return normal * weights["scale"] + weights["bias"]


def dense(x, weights):
    return np.float64(x) @ np.float64(weights["kernel"]) + weights["bias"]


def self_attention(x, w, visible, valid, heads, bias):
    """Multi-head attention with q, k, v and output projections, each with a bias vector."""
    batch, positions, width = x.shape
    split = (batch, positions, heads, width // heads)
    q, k, v = (dense(x, w[name]).reshape(split) for name in ("query", "key", "value"))
    scale = (width // heads) ** -0.5
    y = attend(q, k, v, visible, valid, kind="softmax", scale=scale, bias=bias)
    return dense(y.reshape(x.shape), w["out"])


def classic(x, w, visible, valid, *, heads, bias=None):
    """x [B, T, D] -> [B, T, D]: norm(x + attention(x)), then norm(y + FFN(y)) with ReLU."""
    y = layer_norm(x + self_attention(x, w, visible, valid, heads, bias), w["attention_norm"])
    hidden = np.maximum(dense(y, w["ffn_in"]), 0)
    return layer_norm(y + dense(hidden, w["ffn_out"]), w["ffn_norm"])


def modern(x, w, visible, valid, *, heads, bias=None):
    """x [B, T, D] -> [B, T, D]: x + sigmoid(W x) * f(norm(x)) for attention, then SwiGLU."""
    mixed = self_attention(layer_norm(x, w["attention_norm"]), w, visible, valid, heads, bias)
    y = x + sigmoid(dense(x, w["attention_gate"])) * mixed
    inner = layer_norm(y, w["ffn_norm"])
    hidden = silu(dense(inner, w["ffn_gate"])) * dense(inner, w["ffn_in"])
    return y + sigmoid(dense(y, w["residual_gate"])) * dense(hidden, w["ffn_out"])
