"""What compressed tokens enter the first layer with, and that a state keeps no more than that."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.config import LossConfig, ModelConfig
from jaxrec.layout import SegmentLayout
from jaxrec.model import recommender, states
from jaxrec.model.compressor import ENCODERS, position_times
from jaxrec.model.token_inputs import PooledItems, mean_items
from tests.nn import parity

LAYOUT = SegmentLayout.stream(4, 3, 2, recent_min=2)
PLAIN = ModelConfig(backbone="sasrec", width=8, heads=2, layers=2)


def layer_norm(x):
    y = x - x.mean(-1, keepdims=True)
    return y / np.sqrt(np.square(y).mean(-1, keepdims=True) + 1e-6)


def test_pooled_items_are_softmax_averages_of_the_segment():
    rng = np.random.default_rng(0)
    items, lengths = rng.standard_normal((2, 3, 4, 8)), np.asarray([[4, 2, 0], [1, 4, 3]])
    pooled = PooledItems(tokens=3, heads=2)
    params = {
        "query": rng.standard_normal((3, 2, 4)),
        "offset": rng.standard_normal((4, 3, 2)),
    }
    value = pooled.apply({"params": params}, items.astype(np.float32), lengths)
    assert value.shape == (2, 3, 3, 8)
    for user, segment in np.ndindex(2, 3):
        count = lengths[user, segment]
        for token in range(3):
            parts = []
            for head in range(2):
                x = items[user, segment, :count, 4 * head : 4 * head + 4]
                logits = layer_norm(x) @ params["query"][token, head] / 2
                weights = np.exp(logits + params["offset"][:count, token, head])
                parts.append(weights @ x / weights.sum() if count else np.zeros(4))
            truth = layer_norm(np.concatenate(parts)) if count else np.zeros(8)
            np.testing.assert_allclose(value[user, segment, token], truth, atol=2e-5)


@pytest.mark.parametrize("backbone", ["hstu", "sasrec", "llama"])
def test_tokens_begin_as_far_apart_as_what_is_added_to_them(backbone):
    """Averages have unit scale: beside them smaller vectors would make all tokens alike."""
    config = dataclasses.replace(PLAIN, backbone=backbone, width=64, token_input="pooled")
    model = recommender.build(config, LossConfig(), LAYOUT, num_items=5)
    tokens = model.init(jax.random.key(0))["compressor"]["tokens"]
    assert tokens.shape == (3, 64)
    assert 0.8 < np.std(tokens) < 1.2


@pytest.mark.parametrize(("size", "tokens"), [(8, 4), (5, 3), (3, 4), (6, 1)])
def test_averages_of_parts_begin_at_the_parts_of_their_tokens(size, tokens):
    items, lengths = np.zeros((1, 1, size, 8), np.float32), np.asarray([[size]])
    init = PooledItems(tokens=tokens, heads=2, parts=True).init(jax.random.key(0), items, lengths)
    offset = init["params"]["offset"]
    assert offset.shape == (size, tokens, 2)
    for place, token in np.ndindex(size, tokens):
        own = token <= place * tokens / size < token + 1
        np.testing.assert_allclose(offset[place, token], 2.0 * own, atol=0.1)
    plain = PooledItems(tokens=tokens, heads=2).init(jax.random.key(0), items, lengths)
    np.testing.assert_allclose(plain["params"]["offset"], 0, atol=0.1)


@pytest.mark.parametrize("backbone", ["hstu", "sasrec", "llama"])
def test_what_no_state_keeps_is_made_again(backbone):
    """The first layer's K/V of learned tokens: the same for all users and segments, to the bit, and
    what a forward over the items computes, to rounding (other shapes, other order of sums).
    """
    config = dataclasses.replace(PLAIN, backbone=backbone)
    model = recommender.build(config, LossConfig(), LAYOUT, parity.ITEMS)
    params = parity.random_params(model)
    _, lengths, times = parity.histories(LAYOUT, users=5)
    x = np.random.default_rng(0).standard_normal((5, LAYOUT.length, config.width), np.float32)
    tokens = LAYOUT.token_positions
    x[:, tokens] = params["compressor"]["tokens"][LAYOUT.token_index[tokens]]
    layer = jax.tree.map(
        lambda leaf: jnp.asarray(leaf[0]), params["compressor"]["encoder"]["layers"]
    )
    block = ENCODERS[backbone](config, LAYOUT, LAYOUT, False)
    layer_times = position_times(LAYOUT, times, request_time=False)
    _, truth = block.apply({"params": layer}, x, None, LAYOUT.valid(lengths), layer_times)

    kept = states.empty(model, 5).tokens
    assert kept.inputs is None
    assert len(kept.k) == config.layers - 1

    def complete(network):
        encoder, vectors = network.compressor.encoder, network.compressor.tokens
        return encoder.with_first_layer(kept, LAYOUT.request(), vectors)

    made = model.network.apply({"params": params}, method=complete)
    for ours, theirs in zip((made.k, made.v), truth, strict=True):
        assert ours.shape == (config.layers, *theirs.shape)
        np.testing.assert_array_equal(ours[0], np.broadcast_to(ours[0, :1], theirs.shape))
        np.testing.assert_allclose(ours[0], theirs, atol=2e-6)


def test_inputs_are_kept_where_they_differ():
    for config, layout in (
        (dataclasses.replace(PLAIN, token_input="pooled"), LAYOUT),
        (dataclasses.replace(PLAIN, token_input="mean"), LAYOUT),
        (PLAIN, SegmentLayout.stream(4, 3, 2, recent_min=2, positions="absolute")),
    ):
        model = recommender.build(config, LossConfig(), layout, parity.ITEMS)
        assert states.empty(model, 5).tokens.inputs.shape == (5, 6, config.width)


def test_mean_items_are_means_of_the_segment():
    rng = np.random.default_rng(0)
    items, lengths = rng.standard_normal((2, 3, 4, 8)), np.asarray([[4, 2, 0], [1, 4, 3]])
    value = mean_items(items.astype(np.float32), lengths)
    assert value.shape == (2, 3, 1, 8)
    for user, segment in np.ndindex(2, 3):
        count = lengths[user, segment]
        truth = layer_norm(items[user, segment, :count].mean(0)) if count else np.zeros(8)
        np.testing.assert_allclose(value[user, segment, 0], truth, atol=2e-5)


@pytest.mark.parametrize("backbone", ["hstu", "sasrec", "llama"])
@pytest.mark.parametrize("token_input", ["learned", "pooled", "parts", "mean", "constant"])
def test_what_blind_tokens_are_blind_to(backbone, token_input):
    """In any order of a segment's items K/V of means are the same; constants, of any items."""
    config = dataclasses.replace(PLAIN, backbone=backbone, token_input=token_input, layers=3)
    model = recommender.build(config, LossConfig(), LAYOUT, parity.ITEMS)
    params = jax.tree.map(jnp.asarray, parity.random_params(model))
    items = np.asarray([[1, 2, 3, 4, 5, 6, 7, 8]], np.int32)
    times = np.zeros_like(items)

    def same(others):
        one, two = (
            states.compress(model, params, events, times, np.asarray([8])).tokens
            for events in (items, others)
        )
        return np.allclose(one.k, two.k, atol=1e-6) and np.allclose(one.v, two.v, atol=1e-6)

    assert same(items[:, [3, 0, 1, 2, 6, 7, 5, 4]]) == (token_input in ("mean", "constant"))
    assert same(items[:, ::-1]) == (token_input == "constant")
    # what is the same for all is in no state
    kept = states.empty(model, 1).tokens.inputs is not None
    assert kept == (token_input in ("pooled", "parts", "mean"))


@pytest.mark.parametrize("token_input", ["pooled", "parts", "mean"])
def test_tokens_that_start_from_items_need_a_stream(token_input):
    config = dataclasses.replace(PLAIN, token_input=token_input)
    layout = SegmentLayout.insertions(6, [(4, 2)])
    model = recommender.build(config, LossConfig(), layout, parity.ITEMS)
    with pytest.raises(ValueError, match=f"token_input='{token_input}' needs a stream"):
        model.init(jax.random.key(0))
