"""Baselines of the benchmark against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.benchmark.grid_methods import mean_of_segments
from jaxrec.layout import SegmentLayout, structure
from jaxrec.nn.attention import attend


@pytest.mark.parametrize(("window", "prefix"), [(3, 2), (1, 0), (20, 4), (5, 30)])
@pytest.mark.parametrize("kind", ["softmax", "pointwise"])
def test_semi_local_attention_equals_numpy(monkeypatch, window, prefix, kind):
    monkeypatch.setattr(structure, "CHUNK", 4)
    rng = np.random.default_rng(0)
    length = 18
    q, k, v = rng.standard_normal((3, 2, length, 2, 4)).astype(np.float32)
    valid = np.ones((2, length), bool)
    valid[1, 15:] = False
    layout = SegmentLayout.semi_local(length, window, prefix)
    output = attend(q, k, v, layout, jnp.asarray(valid), kind=kind, normalizer=7.0)
    seen = np.zeros((length, length), bool)
    for i in range(length):
        for j in range(i + 1):
            seen[i, j] = i - j < window or j < prefix
    assert layout.pairs("visible") == seen.sum() == layout.visible.sum()
    logits = np.einsum("bqnh,bknh->bnqk", q, k)
    mask = seen[None, None] & valid[:, None, None]
    if kind == "softmax":
        weights = np.exp(np.where(mask, logits, -np.inf))
        weights /= weights.sum(-1, keepdims=True, where=mask) + 1e-30
    else:
        weights = np.where(mask, logits / (1 + np.exp(-logits)) / 7.0, 0)
    expected = np.einsum("bnqk,bknh->bqnh", weights, v)
    np.testing.assert_allclose(output[valid], expected[valid], atol=2e-6)
    dense = attend(q, k, v, layout, valid, kind=kind, normalizer=7.0, backend="dense")
    np.testing.assert_allclose(dense[valid], expected[valid], atol=2e-6)


def test_semi_local_refuses_an_empty_window():
    with pytest.raises(ValueError, match="window 0"):
        SegmentLayout.semi_local(8, 0, 1)


def test_means_leave_padding_out():
    rng = np.random.default_rng(1)
    vectors = rng.standard_normal((2, 6, 3)).astype(np.float32)
    items = np.asarray([[1, 2, 3, 4, 0, 0], [0, 0, 0, 5, 6, 7]])
    output = jax.jit(mean_of_segments, static_argnums=2)(vectors, items, 3)
    expected = [
        [vectors[0, :3].mean(0), vectors[0, 3]],
        [np.zeros(3), vectors[1, 3:].mean(0)],
    ]
    np.testing.assert_allclose(output, expected, atol=1e-6)


@pytest.mark.parametrize(
    "layout",
    [
        SegmentLayout.full(9),
        SegmentLayout.stream(4, 2, 3),
        SegmentLayout.stream(4, 2, 3).request(),
        SegmentLayout.stream(4, 1, 2).extension(),
        SegmentLayout.stream(3, 2, 2, num_segments=5),
        SegmentLayout.insertions(10, [(2, 1), (7, 3)]),
    ],
)
def test_visible_pairs_are_counted_without_the_mask(layout):
    assert layout.pairs("visible") == layout.visible.sum()
