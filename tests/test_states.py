"""Cached equals uncached: the equality that specifies everything (DESIGN §1)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrec import recommender, states
from jaxrec.config import HSTUConfig, LossConfig, ModelConfig, SASRecConfig
from jaxrec.layout import SegmentLayout
from jaxrec.types import Batch

ITEMS = 30
MODELS = {
    "hstu": ModelConfig(backbone="hstu", width=8, heads=2, layers=2),
    "hstu-request": ModelConfig(backbone="hstu", width=8, heads=2, layers=2, request_time=True),
    "hstu-plain": ModelConfig(
        backbone="hstu", width=8, heads=2, layers=2, hstu=HSTUConfig(False, False)
    ),
    "sasrec-modern": ModelConfig(
        backbone="sasrec", width=8, heads=2, layers=2, sasrec=SASRecConfig(time_bias=True)
    ),
    "sasrec-classic": ModelConfig(
        backbone="sasrec", width=8, heads=2, layers=2, sasrec=SASRecConfig("classic")
    ),
}


@functools.cache
def build(name, n, k, max_segments, recent_min, positions):
    layout = SegmentLayout.stream(n, k, max_segments, recent_min, positions)
    model = recommender.build(MODELS[name], LossConfig(), layout, ITEMS)
    params = model.init(jax.random.key(0))
    # weights of trained size: the initial ones would hide differences
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    leaves = [
        x + 0.3 * jax.random.normal(key, x.shape) for x, key in zip(leaves, keys, strict=True)
    ]
    return model, jax.tree.unflatten(tree, leaves)


@functools.cache
def jitted(model_key):
    model, params = build(*model_key)
    step = jax.jit(functools.partial(states.extend, model, params))
    ask = jax.jit(functools.partial(states.query, model, params))
    return step, ask


@functools.cache
def masked(model_key, slots):
    model, params = build(*model_key)
    layout = model.layout.with_segments(slots)
    return jax.jit(lambda *args: model.forward(params, *args[:1], layout, *args[1:]))


def full_forward(model_key, history, times, now):
    """The user's next-event vector by one masked forward over the whole history."""
    _, n, _, _, recent_min, _ = model_key
    model, _ = build(*model_key)
    count = len(history)
    segments = max(count - recent_min, 0) // n
    slots = 4  # more than any test history fills, so that shapes repeat
    assert segments <= slots
    recent = model.layout.segments[-1][0]
    pending = count - segments * n
    items = np.zeros((1, slots * n + recent), np.int32)
    clock = np.zeros((1, slots * n + recent + 1), np.int32)
    start = (slots - segments) * n
    items[0, start : start + count] = history
    clock[0, start : start + count] = times
    clock[0, start + count] = now
    lengths = np.asarray([[0] * (slots - segments) + [n] * segments + [pending]], np.int32)
    y, _ = masked(model_key, slots)(items, lengths, clock)
    layout = model.layout.with_segments(slots)
    if pending:
        index = layout.item_positions[slots * n + pending - 1]
    else:
        index = layout.token_positions[-1]
    return np.asarray(model.queries(y[:, index]))[0]


KEYS = [
    ("hstu", 4, 2, 2, 1, "segment"),
    ("hstu", 3, 1, 3, 0, "absolute"),
    ("hstu", 5, 3, 1, 2, "segment"),
    ("hstu-request", 3, 1, 3, 0, "segment"),
    ("hstu-plain", 4, 2, 2, 1, "absolute"),
    ("sasrec-modern", 3, 1, 3, 0, "segment"),
    ("sasrec-modern", 5, 3, 1, 2, "absolute"),
    ("sasrec-classic", 4, 2, 2, 1, "segment"),
]


@settings(max_examples=12, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("key", KEYS, ids=lambda k: "-".join(map(str, k)))
def test_any_schedule_equals_one_masked_forward(key, data):
    """Any histories, any cut into extensions, any batch composition; overflow included."""
    _, n, _, _, recent_min, _ = key
    model, params = build(*key)
    longest = 4 * n + recent_min
    counts = data.draw(st.lists(st.integers(1, longest), min_size=3, max_size=3))
    rng = np.random.default_rng(data.draw(st.integers(0, 1 << 30)))
    histories = [rng.integers(1, ITEMS + 1, c) for c in counts]
    clocks = [np.sort(rng.integers(0, 10**7, c)) for c in counts]
    step, ask = jitted(key)
    state = states.empty(model, 3)
    done = np.zeros(3, np.int64)
    while (done < counts).any():
        width = 6
        take = [
            data.draw(st.integers(0, int(min(width, c - d))))
            for c, d in zip(counts, done, strict=True)
        ]
        if not any(take):
            take = [int(min(width, c - d)) for c, d in zip(counts, done, strict=True)]
        items = np.zeros((3, width), np.int32)
        times = np.zeros((3, width), np.int32)
        for u in range(3):
            items[u, : take[u]] = histories[u][done[u] : done[u] + take[u]]
            times[u, : take[u]] = clocks[u][done[u] : done[u] + take[u]]
        state = step(state, items, times, np.asarray(take, np.int32))
        done += take
    now = np.asarray([c[-1] + 1000 for c in clocks], np.int32)
    cached = np.asarray(ask(state, now))
    assert np.asarray(state.events).tolist() == counts
    table = np.asarray(model.item_table(params))[1:]
    for u in range(3):
        expected = full_forward(key, histories[u], clocks[u], now[u]) @ table.T
        scores = cached[u] @ table.T
        spread = expected.max() - expected.min()
        np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-5 * spread)


@pytest.mark.parametrize("name", ["hstu", "sasrec-modern"])
def test_cached_prediction_equals_masked_prediction(name):
    """`predict_cached` and `predict` agree on every slot that the recent window predicts."""
    key = (name, 4, 2, 3, 1, "segment")
    model, params = build(*key)
    rng = np.random.default_rng(0)
    slots = model.layout.num_items + 1
    lengths = np.asarray([[4, 4, 4, 4], [0, 4, 4, 2], [0, 0, 0, 3]], np.int32)
    items = rng.integers(1, ITEMS + 1, (3, slots)).astype(np.int32)
    times = np.sort(rng.integers(0, 10**6, (3, slots))).astype(np.int32)
    zeros = np.zeros(3, np.int32)
    batch = Batch(items, times, lengths, np.ones((3, slots), np.float32), zeros, zeros)
    whole = np.asarray(jax.jit(model.predict)(params, batch))
    cached = np.asarray(jax.jit(functools.partial(states.predict_cached, model))(params, batch))
    for row in range(3):
        window = slice(12 + 1, 12 + 1 + lengths[row, -1])
        scale = np.abs(whole[row, window]).max()
        np.testing.assert_allclose(cached[row, window], whole[row, window], atol=1e-5 * scale)
    recent = np.asarray(states.predict_recent(model, params, batch))
    np.testing.assert_allclose(recent[2, 13:16], whole[2, 13:16], atol=1e-5)
    assert np.abs(recent[0, 13:17] - whole[0, 13:17]).max() > 1e-3


def test_padding_events_change_nothing():
    """What stands behind `counts` is never read."""
    key = ("hstu", 4, 2, 2, 1, "segment")
    model, params = build(*key)
    items = np.arange(1, 11, dtype=np.int32)[None]
    times = np.arange(10, dtype=np.int32)[None] * 100
    counts = np.asarray([7], np.int32)
    other = items.copy()
    other[:, 7:] = 29
    a = states.compress(model, params, items, times, counts)
    b = states.compress(model, params, other, times, counts)
    jax.tree.map(np.testing.assert_array_equal, a, b)
    assert int(a.segments[0]) == 1
    assert int(a.pending[0]) == 3


def test_states_need_tokens():
    model = recommender.build(MODELS["hstu"], LossConfig(), SegmentLayout.full(8), ITEMS)
    with pytest.raises(ValueError, match="compressed tokens"):
        states.empty(model, 1)


def test_a_user_without_events_scores_zero():
    model, params = build("hstu", 4, 2, 2, 1, "segment")
    x = states.query(model, params, states.empty(model, 2))
    np.testing.assert_array_equal(x, jnp.zeros((2, 8)))
