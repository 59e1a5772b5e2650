"""Cached equals uncached: the equality that specifies everything."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrec import ranking
from jaxrec.config import HSTUConfig, LlamaConfig, LossConfig, ModelConfig, SASRecConfig
from jaxrec.layout import SegmentLayout
from jaxrec.model import recommender, states
from jaxrec.types import Batch, TokenOutputs
from tests.model import trained

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
    "hstu-repeats": ModelConfig(
        backbone="hstu",
        width=8,
        heads=2,
        layers=2,
        repeat_half_lives=(3, 0),
        repeat_half_times=(1e6,),
    ),
    "hstu-bias": ModelConfig(
        backbone="hstu", width=8, heads=2, layers=2, repeat_half_lives=(3,), item_bias=True
    ),
    "llama": ModelConfig(
        backbone="llama",
        width=8,
        heads=2,
        layers=2,
        llama=LlamaConfig(kv_heads=1, head_width=6, time_bias=True),
    ),
    "hstu-pooled": ModelConfig(
        backbone="hstu", width=8, heads=2, layers=2, token_input="pooled", request_time=True
    ),
    "sasrec-parts": ModelConfig(
        backbone="sasrec", width=8, heads=2, layers=3, token_input="parts", token_distance=True
    ),
    "llama-pooled": ModelConfig(
        backbone="llama",
        width=8,
        heads=2,
        layers=2,
        token_input="pooled",
        llama=LlamaConfig(kv_heads=1, head_width=6),
    ),
    "hstu-mean": ModelConfig(
        backbone="hstu", width=8, heads=2, layers=3, token_input="mean", request_time=True
    ),
    "sasrec-mean": ModelConfig(backbone="sasrec", width=8, heads=2, layers=2, token_input="mean"),
    "llama-mean": ModelConfig(backbone="llama", width=8, heads=2, layers=2, token_input="mean"),
    "pooled-embedding": ModelConfig(
        backbone="hstu",
        width=8,
        heads=2,
        layers=2,
        token_input="pooled",
        token_distance=True,
        state="embedding",
    ),
    "hstu-embedding": ModelConfig(
        backbone="hstu", width=8, heads=2, layers=2, state="embedding", request_time=True
    ),
    "sasrec-embedding": ModelConfig(
        backbone="sasrec", width=8, heads=2, layers=3, state="embedding"
    ),
    "classic-embedding": ModelConfig(
        backbone="sasrec",
        width=8,
        heads=2,
        layers=2,
        state="embedding",
        sasrec=SASRecConfig("classic"),
    ),
    "llama-embedding": ModelConfig(
        backbone="llama",
        width=8,
        heads=2,
        layers=2,
        state="embedding",
        llama=LlamaConfig(kv_heads=1, head_width=6, time_bias=True),
    ),
    "sasrec-classic": ModelConfig(
        backbone="sasrec", width=8, heads=2, layers=2, sasrec=SASRecConfig("classic")
    ),
}


@functools.cache
def build(name, n, k, max_segments, recent_min, positions):
    layout = SegmentLayout.stream(n, k, max_segments, recent_min, positions)
    model = recommender.build(MODELS[name], LossConfig("sampled_softmax"), layout, ITEMS)
    return model, trained.moved(model.init(jax.random.key(0)))


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
    model, params = build(*model_key)
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
    query = jax.tree.map(lambda a: np.asarray(a)[0], model.queries(params, y[:, index]))
    oldest = max(segments - model.layout.max_segments, 0) * n  # what no position sees any more
    return scores_by_definition(model, params, query, history[oldest:], times[oldest:])


def scores_by_definition(model, params, query, seen, clock):
    """[V] one user's scores, own items counted in a loop (`repeats`)."""
    items, half_lives = model.item_vectors(params), model.half_lives
    scores = np.asarray(items.vectors) @ query.vectors
    if items.bias is not None:
        scores = scores + np.asarray(items.bias)
    counts = np.zeros((ITEMS + 1, half_lives.number))
    for place, (item, time) in enumerate(zip(seen, clock, strict=True)):
        ages = [(len(seen) - 1 - place, h) for h in half_lives.events]
        ages += [(int(clock[-1]) - int(time), h) for h in half_lives.seconds]
        counts[item] += [0.5 ** (age / h) if h else 1.0 for age, h in ages]
    if query.gates is not None:
        scores = scores + np.log1p(counts) @ query.gates
    return scores[1:]


# llama rotates by the offset inside a segment and refuses `absolute` positions
KEYS = [
    ("hstu", 4, 2, 2, 1, "segment"),
    ("hstu", 3, 1, 3, 0, "absolute"),
    ("hstu-request", 3, 1, 3, 0, "segment"),
    ("hstu-repeats", 4, 2, 2, 1, "segment"),
    ("hstu-bias", 4, 2, 2, 1, "segment"),
    ("hstu-plain", 4, 2, 2, 1, "absolute"),
    ("sasrec-modern", 5, 3, 1, 2, "absolute"),
    ("llama", 4, 2, 2, 1, "segment"),
    ("sasrec-classic", 3, 1, 3, 0, "absolute"),
    ("hstu-pooled", 4, 2, 2, 1, "segment"),
    ("sasrec-parts", 5, 3, 2, 1, "segment"),
    ("llama-pooled", 4, 2, 2, 1, "segment"),
    ("pooled-embedding", 3, 2, 2, 0, "segment"),
    ("hstu-mean", 3, 1, 3, 0, "segment"),
    ("llama-mean", 4, 2, 2, 1, "segment"),
    ("hstu-embedding", 4, 2, 2, 1, "segment"),
    ("sasrec-embedding", 3, 1, 3, 0, "segment"),
    ("classic-embedding", 5, 3, 1, 2, "absolute"),
    ("llama-embedding", 4, 2, 2, 1, "segment"),
]
# the same models in another layout
OTHER_LAYOUTS = [
    ("hstu", 5, 3, 1, 2, "segment"),
    ("hstu-request", 4, 2, 2, 1, "absolute"),
    ("hstu-pooled", 3, 1, 3, 0, "absolute"),
    ("hstu-repeats", 3, 1, 3, 0, "absolute"),
    ("sasrec-modern", 3, 1, 3, 0, "segment"),
    ("llama", 3, 1, 3, 0, "segment"),
    ("sasrec-classic", 4, 2, 2, 1, "segment"),
    ("hstu-embedding", 3, 1, 3, 0, "absolute"),
    ("sasrec-mean", 4, 2, 2, 1, "absolute"),
]


@settings(max_examples=12, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize(
    "key",
    [*KEYS, *(pytest.param(key, marks=pytest.mark.slow) for key in OTHER_LAYOUTS)],
    ids=lambda k: "-".join(map(str, k)),
)
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
    index, history = model.item_index(params), states.history_items(model, state)
    cached = np.asarray(ranking.scores(ask(state, now), index, history))[:, 1:]
    assert np.asarray(state.events).tolist() == counts
    for u in range(3):
        expected = full_forward(key, histories[u], clocks[u], now[u])
        spread = expected.max() - expected.min()
        np.testing.assert_allclose(cached[u], expected, rtol=0, atol=1e-5 * spread)


@pytest.mark.parametrize("name", ["hstu", "sasrec-modern", "llama"])
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
    whole = np.asarray(jax.jit(model.predict)(params, batch).vectors)
    predict = jax.jit(functools.partial(states.predict_cached, model))
    cached = np.asarray(predict(params, batch).vectors)
    for row in range(3):
        window = slice(12 + 1, 12 + 1 + lengths[row, -1])
        scale = np.abs(whole[row, window]).max()
        np.testing.assert_allclose(cached[row, window], whole[row, window], atol=1e-5 * scale)
    alone = lengths * np.asarray([[0, 0, 0, 1]], np.int32)  # complete segments absent
    recent = np.asarray(jax.jit(model.predict)(params, batch._replace(lengths=alone)).vectors)
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
    compress = jax.jit(functools.partial(states.compress, model))
    a = compress(params, items, times, counts)
    b = compress(params, other, times, counts)
    jax.tree.map(np.testing.assert_array_equal, a, b)
    assert int(a.segments[0]) == 1
    assert int(a.pending[0]) == 3


def test_states_need_tokens():
    model = recommender.build(MODELS["hstu"], LossConfig(), SegmentLayout.full(8), ITEMS)
    with pytest.raises(ValueError, match="compressed tokens"):
        states.empty(model, 1)


def test_a_user_without_events_scores_zero():
    model, params = build("hstu", 4, 2, 2, 1, "segment")
    x = jax.jit(functools.partial(states.query, model))(params, states.empty(model, 2))
    np.testing.assert_array_equal(x.vectors, jnp.zeros((2, 8)))


def test_recommend_gives_the_best_of_score():
    key = ("hstu-repeats", 4, 2, 2, 1, "segment")
    (model, params), (step, _) = build(*key), jitted(key)
    rng = np.random.default_rng(0)
    items = rng.integers(1, ITEMS + 1, (3, 12)).astype(np.int32)
    times = np.sort(rng.integers(0, 10**6, (3, 12))).astype(np.int32)
    state = states.empty(model, 3)
    for cut, counts in ((slice(0, 6), [3, 6, 6]), (slice(6, 12), [0, 1, 5])):
        state = step(state, items[:, cut], times[:, cut], np.asarray(counts, np.int32))
    whole = np.asarray(jax.jit(functools.partial(states.score, model))(params, state))[:, 1:]
    out = np.asarray([[4], [0], [7]], np.int32)
    ask = functools.partial(states.recommend, model, k=5, chunk=8)
    best, ids = jax.jit(ask)(params, state, None, exclude=out)
    for row in range(3):
        order = [i for i in np.argsort(-whole[row]) + 1 if i != out[row, 0]][:5]
        assert ids[row].tolist() == order
        np.testing.assert_allclose(best[row], whole[row][ids[row] - 1], rtol=1e-5)


@pytest.mark.parametrize("name", ["hstu-embedding", "sasrec-embedding", "llama-embedding"])
def test_the_embedding_form_keeps_outputs_alone(name):
    """The state is the tokens' outputs; training differentiates through what was kept."""
    model, params = build(name, 4, 2, 3, 1, "segment")
    state = states.empty(model, 2)
    assert isinstance(state.tokens, TokenOutputs)  # and nothing else: no keys, no values
    assert state.tokens.outputs.shape == (2, 6, 8)
    rng = np.random.default_rng(0)
    items = rng.integers(1, ITEMS + 1, (2, 13)).astype(np.int32)
    times = np.sort(rng.integers(0, 10**6, (2, 13))).astype(np.int32)
    compress = jax.jit(functools.partial(states.compress, model))
    state = compress(params, items, times, np.asarray([9, 13], np.int32))
    np.testing.assert_array_equal(state.tokens.outputs[:, -1], state.readout)
    assert state.segments.tolist() == [2, 3]

    slots = model.layout.num_items + 1
    lengths = np.full((2, 4), 4, np.int32)
    line = rng.integers(1, ITEMS + 1, (2, slots)).astype(np.int32)
    clock = np.sort(rng.integers(0, 10**6, (2, slots))).astype(np.int32)
    weights = np.zeros((2, slots), np.float32)
    weights[:, -1] = 1  # one target, behind the window: older segments act through tokens alone
    batch = Batch(line, clock, lengths, weights, np.zeros(2, np.int32), np.zeros(2, np.int32))

    counts = np.ones(ITEMS + 1)

    def loss(params):
        return model.loss(params, batch, rng=jax.random.key(0), item_counts=counts)[0]

    grads = jax.jit(jax.grad(loss))(params)
    assert np.abs(grads["compressor"]["tokens"]).max() > 0
