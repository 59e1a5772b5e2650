"""Attention and relative bias from the equations, one query at a time, float64.

Softmax: arXiv 1706.03762 eq. 1. Pointwise: arXiv 2402.17152 eq. 2. Only the keys that a query
sees are ever touched, so a mask that leaks or a divisor that counts keys shows.
"""

import math

import numpy as np


def sigmoid(x):
    return 1 / (1 + np.exp(-np.float64(x)))


def silu(x):
    return np.float64(x) * sigmoid(x)


def attend(q, k, v, visible, valid, *, kind, scale=1.0, normalizer=1.0, bias=None):
    """[B, T, N, H] from q [B, T, N, H], k and v [B, S, N, H].

    visible: [T, S] the layout's rule; valid: [B, S] which keys exist; bias: [B, N, T, S] added
    to the logits. A query that sees nothing gets zeros.
    """
    q, k, v = np.float64(q), np.float64(k), np.float64(v)
    out = np.zeros(q.shape)
    batch, positions, heads, _ = q.shape
    for b in range(batch):
        for i in range(positions):
            keys = [j for j in range(k.shape[1]) if visible[i, j] and valid[b, j]]
            for n in range(heads):
                logits = [scale * float(q[b, i, n] @ k[b, j, n]) for j in keys]
                if bias is not None:
                    logits = [
                        x + float(bias[b, n, i, j]) for x, j in zip(logits, keys, strict=True)
                    ]
                if kind == "pointwise":
                    weights = [silu(x) / normalizer for x in logits]
                else:
                    top = max(logits, default=0.0)
                    weights = [math.exp(x - top) for x in logits]
                    weights = [w / sum(weights) for w in weights]
                for w, j in zip(weights, keys, strict=True):
                    out[b, i, n] += w * v[b, j, n]
    return out


def time_bucket(seconds) -> int:
    """floor(ln(max(1, |dt|)) / 0.301), 128 at most (arXiv 2402.17152, released code)."""
    return min(int(math.log(max(1, abs(int(seconds)))) / 0.301), 128)


def bias(
    queries,
    keys,
    *,
    distance=None,
    age=None,
    parts=None,
    items=0,
    tokens=0,
    time=None,
    query_times=None,
    key_times=None,
):
    """[B, N, T, S] relative bias of `tests.reference.layout.Place` queries and keys.

    distance: [rows, N] by offset inside a segment; age: [ages * tokens, N] by segments between
    query and token, then token number; parts: [rows, N] by events between a query and the last
    item of the token's part, the j-th of `tokens` parts of `items` items; time: [129, N] by bucket
    of query_times [B, T] minus key_times [B, S] seconds. Pairs that no rule makes visible get
    whatever they get: 0 here.
    """
    tables = [t for t in (distance, age, time) if t is not None]
    batch = 1 if query_times is None else len(query_times)
    out = np.zeros((batch, tables[0].shape[1], len(queries), len(keys)))
    for i, query in enumerate(queries):
        for j, key in enumerate(keys):
            back = query.segment - key.segment
            if distance is not None and back == 0 and query.offset >= key.offset:
                out[:, :, i, j] += distance[query.offset - key.offset]
            if age is not None and back > 0 and key.token:
                row = (back - 1) * tokens + key.index
                if row < len(age):
                    out[:, :, i, j] += age[row]
            if parts is not None and back > 0 and key.token:
                own = [n for n in range(items) if n * tokens < (key.index + 1) * items]
                events = min(query.offset, items) + back * items - max(own, default=-1)
                out[:, :, i, j] += parts[min(events, len(parts) - 1)]
            if time is not None:
                for b in range(batch):
                    seconds = int(query_times[b, i]) - int(key_times[b, j])
                    out[b, :, i, j] += time[time_bucket(seconds)]
    return out
