"""A model with weights of trained size and random histories, beside its NumPy value."""

import jax
import numpy as np

from jaxrec.config import LossConfig
from jaxrec.layout import SegmentLayout
from jaxrec.model import recommender
from tests.reference import model as reference

ITEMS = 11


def random_params(model, seed=0):
    """Parameters of the model's shapes, large enough that every one of them shows."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    return jax.tree.map(lambda a: (0.4 * rng.standard_normal(a.shape)).astype(np.float32), shapes)


def histories(layout, seed=0, users=3):
    """(items [B, E], lengths [B, S], times [B, E + 1]) of random right-aligned users."""
    rng = np.random.default_rng(seed)
    lengths = np.zeros((users, layout.num_segments), np.int32)
    complete = layout.num_segments - 1
    for user in range(users):
        have = complete if user == 0 else rng.integers(0, complete + 1)
        lengths[user, complete - have : complete] = [n for n, _ in layout.segments[-1 - have : -1]]
        lengths[user, -1] = rng.integers(1, layout.segments[-1][0] + 1)
    items = rng.integers(1, ITEMS + 1, (users, layout.num_items)).astype(np.int32)
    times = np.sort(rng.integers(0, 10**8, (users, layout.num_items + 1)), axis=1)
    return items, lengths, times.astype(np.int32)


def check(config, layout, *, tolerance=2e-5, **expected):
    """`forward` equals the equations at every position that exists, under both backends."""
    items, lengths, times = histories(layout)
    for backend in ("dense", "blocked"):
        config.attention = backend
        model = recommender.build(config, LossConfig(), layout, ITEMS)
        params = random_params(model)
        outputs, kv = jax.jit(lambda p, m=model: m.forward(p, items, layout, lengths, times))(
            params
        )
        truth, valid = reference.outputs(
            params,
            config,
            layout.segments,
            items,
            lengths,
            times,
            max_segments=layout.max_segments,
            **expected,
        )
        assert outputs.dtype == np.float32
        assert np.isfinite(outputs).all()
        outputs = np.asarray(outputs)
        np.testing.assert_allclose(outputs[valid], truth[valid], atol=tolerance)
        heads, layers = config.kv_heads, config.layers
        tokens = layout.num_tokens
        assert kv.k.shape == (layers - 1, 3, tokens, heads, config.head_width)
        np.testing.assert_array_equal(kv.valid, valid[:, layout.token_positions])


def absolute(layout, lengths):
    """[B, T] rows of the position table for histories that fit the layout."""
    n, k = layout.segments[0]
    rows = np.zeros((len(lengths), layout.length), int)
    for user, row in enumerate(lengths):
        position = 0
        missing = sum(count == 0 for count in row[:-1])
        for segment, (items, tokens) in enumerate(layout.segments):
            last = segment == layout.num_segments - 1
            start = layout.max_segments * (n + k) if last else (segment - missing) * (n + k)
            rows[user, position : position + items + tokens] = start + np.arange(items + tokens)
            position += items + tokens
    return np.maximum(rows, 0)  # a segment that does not exist stands nowhere


STREAM = SegmentLayout.stream(3, 2, 2, recent_min=2)
OVERFLOW = SegmentLayout.stream(2, 1, 2, num_segments=4)
ABSOLUTE = SegmentLayout.stream(3, 2, 2, recent_min=1, positions="absolute")
