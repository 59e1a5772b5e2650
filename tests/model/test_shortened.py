"""The loss of a batch in shorter rows is that of the same rows with padding."""

import functools

import jax
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from jaxrec.config import HSTUConfig, LayoutConfig, LlamaConfig, LossConfig, ModelConfig
from jaxrec.data import buckets, windows
from jaxrec.layout import SegmentLayout
from jaxrec.model import recommender
from tests.model import trained

ITEMS, EVENTS = 20, 30
MODELS = {
    "hstu": ModelConfig(backbone="hstu", width=8, heads=2, layers=1, request_time=True),
    "hstu-plain": ModelConfig(width=8, heads=2, layers=1, hstu=HSTUConfig(False, False)),
    "hstu-embedding": ModelConfig(width=8, heads=2, layers=1, state="embedding"),
    "sasrec": ModelConfig(backbone="sasrec", width=8, heads=2, layers=1),
    "llama": ModelConfig(
        backbone="llama", width=8, heads=2, layers=1, llama=LlamaConfig(kv_heads=1, head_width=6)
    ),
}
LOSSES = {
    "softmax": LossConfig("softmax", chunk=64),
    "consistency": LossConfig("softmax", consistency=0.5, chunk=64),
}
CASES = [
    ("hstu", "compressed", "segment", "softmax"),
    ("hstu", "compressed", "absolute", "consistency"),
    ("hstu", "full", "absolute", "softmax"),
    ("hstu-embedding", "compressed", "segment", "softmax"),
    ("hstu-plain", "recent", "segment", "softmax"),
    ("sasrec", "compressed", "segment", "softmax"),
    ("llama", "compressed", "segment", "softmax"),
]
# full rows, as of hstu
OTHER_CASES = [("sasrec", "full", "segment", "softmax"), ("llama", "full", "segment", "softmax")]


@functools.cache
def prepared(name, mode, positions, loss):
    """(layout configuration, parameters of trained size, loss and gradient)."""
    config = LayoutConfig(
        mode, segment_size=4, tokens=2, max_segments=2, recent_min=1, positions=positions
    )
    layout = SegmentLayout.from_config(config)
    model = recommender.build(MODELS[name], LOSSES[loss], layout, ITEMS)
    params = trained.moved(model.init(jax.random.key(0)))

    def mean(params, batch):
        total, weight, metrics = model.loss(params, batch)
        return total / weight, (total, weight, metrics)

    return config, params, jax.jit(jax.value_and_grad(mean, has_aux=True))


@settings(max_examples=6, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize(
    "case",
    [*CASES, *(pytest.param(case, marks=pytest.mark.slow) for case in OTHER_CASES)],
    ids="-".join,
)
def test_shorter_rows_change_no_loss_and_no_gradient(case, data):
    config, params, gradient = prepared(*case)
    # fewer segments and a shorter recent window; every size is a compilation
    size = data.draw(st.sampled_from(buckets.capacities(config, 6)[:3:2]))
    train_end = np.asarray(data.draw(st.lists(st.integers(2, EVENTS), min_size=60, max_size=60)))
    random = np.random.default_rng(data.draw(st.integers(0, 1 << 30)))
    uniform, user = random.random((60, windows.NUM_DRAWS)), np.arange(60)
    cut = windows.train_cuts(user, train_end, config, uniform, vary_recent=True)
    fits = (cut.segments <= size.complete) & (cut.recent <= size.recent)
    assume(fits.sum() >= 3)
    cut = cut.take(np.flatnonzero(fits)[:3])._replace(user=np.arange(3))
    items = random.integers(1, ITEMS + 1, 3 * EVENTS).astype(np.int32)
    times = np.sort(random.integers(0, 10**6, (3, EVENTS)), axis=1).reshape(-1).astype(np.int32)
    whole = SegmentLayout.from_config(config)
    long, short = (
        windows.lay_out(cut, layout, items, times, base=np.arange(3) * EVENTS)
        for layout in (whole, whole.shortened(size.slots, size.complete + 1))
    )
    assert short.items.shape[1] == size.slots + 1
    (_, expected), expected_tree = gradient(params, long)
    (_, found), found_tree = gradient(params, short)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    largest = max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(expected_tree))
    for a, b in zip(jax.tree.leaves(found_tree), jax.tree.leaves(expected_tree), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * largest)


@pytest.mark.parametrize("kind", ["sampled_softmax", "bce", "gbce"])
def test_counts_of_repeats_are_those_of_the_longer_rows(kind):
    config = LayoutConfig(segment_size=4, tokens=2, max_segments=3)
    whole = SegmentLayout.from_config(config)
    model_config = ModelConfig(width=8, heads=2, layers=1, repeat_half_lives=(2.0, 0.0))
    loss = LossConfig(kind, negatives=6, sampling="uniform")
    model = recommender.build(model_config, loss, whole, ITEMS)
    params = model.init(jax.random.key(0))
    gates = params["repeat_gates"]
    params["repeat_gates"] = jax.tree.map(lambda x: x + 0.3, gates)
    random, user = np.random.default_rng(0), np.arange(3)
    uniform, train_end = random.random((3, windows.NUM_DRAWS)), np.asarray([3, 7, 9])
    cut = windows.train_cuts(user, train_end, config, uniform, vary_recent=True)
    items = random.integers(1, 5, 30).astype(np.int32)
    times = np.tile(np.arange(10, dtype=np.int32), 3)
    long, short = (
        windows.lay_out(cut, layout, items, times, base=user * 10)
        for layout in (whole, whole.shortened(8, 2))
    )
    negatives = model.negatives(jax.random.key(2), None)
    loss = jax.jit(model.loss)
    expected = loss(params, long, negatives=negatives)
    found = loss(params, short, negatives=negatives)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)
