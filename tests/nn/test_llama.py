"""The Llama backbone against NumPy, from item ids to outputs; its pieces and its limits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.config import Config, LlamaConfig, LossConfig, ModelConfig, validate
from jaxrec.errors import ConfigError
from jaxrec.layout import SegmentLayout
from jaxrec.model import cost, recommender
from jaxrec.nn import llama
from tests.nn import parity
from tests.reference import llama as reference


def config(**more):
    return ModelConfig(backbone="llama", width=8, heads=2, layers=2, llama=LlamaConfig(**more))


def test_stream_with_grouped_queries():
    parity.check(config(kv_heads=1, ffn_width=12), parity.STREAM)


def test_more_segments_than_are_seen_with_time_bias_and_own_head_width():
    parity.check(config(head_width=6, time_bias=True), parity.OVERFLOW)


def test_full_history_with_scaled_positions():
    scaled = {"rope_scaling": "llama3", "rope_theta": 50.0, "rope_length": 16, "rope_factor": 4.0}
    parity.check(config(**scaled), SegmentLayout.full(6))


@pytest.mark.parametrize("scaling", ["none", "linear", "llama3"])
def test_frequencies(scaling):
    """All three branches of the Llama 3 rule occur at this size."""
    settings = LlamaConfig(rope_scaling=scaling, rope_theta=500000.0, rope_factor=32.0)
    expected = [reference.rate(i, 64, settings) for i in range(32)]
    rates = llama.frequencies(settings, 64)
    np.testing.assert_allclose(rates, expected, rtol=1e-12)
    plain = llama.frequencies(LlamaConfig(rope_theta=500000.0), 64)
    if scaling == "llama3":
        assert rates[0] == plain[0]
        assert rates[-1] == plain[-1] / 32
        assert ((rates < plain) & (rates > plain / 32)).any()


def test_attention_depends_on_distance_alone():
    """Shifting all positions changes no product of a turned query and key."""
    rng = np.random.default_rng(0)
    q, k = (jnp.asarray(rng.standard_normal((1, 5, 1, 8)), jnp.float32) for _ in range(2))
    rates = llama.frequencies(LlamaConfig(), 8)

    def products(start):
        turn = llama.rotation(np.arange(5) + start, rates)
        return jnp.einsum("btnh,bsnh->bts", llama.rotate(q, turn), llama.rotate(k, turn))

    np.testing.assert_allclose(products(0), products(37), atol=1e-5)
    spread = llama.rotation(np.arange(5) * 2, rates)
    other = jnp.einsum("btnh,bsnh->bts", llama.rotate(q, spread), llama.rotate(k, spread))
    assert np.abs(products(0) - other).max() > 1e-3


def test_an_adapter_starts_as_nothing_and_adds_a_low_rank_product():
    x = jnp.ones((1, 2, 8))
    layer = llama.Projection(6, rank=2, alpha=4.0)
    params = layer.init(jax.random.key(0), x)["params"]
    np.testing.assert_array_equal(layer.apply({"params": params}, x), x @ params["kernel"])
    params = params | {"lora_b": jnp.ones((2, 6))}
    added = x @ params["lora_a"] @ params["lora_b"] * 2.0
    adapted = layer.apply({"params": params}, x)
    np.testing.assert_allclose(adapted, x @ params["kernel"] + added, rtol=1e-6)


def test_a_state_stores_the_heads_of_keys_alone():
    small, whole = config(kv_heads=1), config()
    layout = SegmentLayout.stream(4, 2, 2).request()
    assert cost.state_bytes(small, layout).vectors * 2 == cost.state_bytes(whole, layout).vectors
    assert cost.dense_flops(small) < cost.dense_flops(whole)


def test_absolute_positions_are_refused():
    layout = SegmentLayout.stream(3, 1, 2, positions="absolute")
    with pytest.raises(ValueError, match=r"layout.positions='absolute'.*segment"):
        recommender.build(config(), LossConfig(), layout, 5).init(jax.random.key(0))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model.llama.kv_heads", 3, "must divide model.heads=4"),
        ("model.llama.head_width", 5, "must be even"),
        ("model.llama.rope_low", 9.0, "below model.llama.rope_high"),
        ("model.llama.rope_scaling", "yarn", "none, linear, llama3"),
        ("layout.positions", "absolute", "backbone=llama needs 'segment'"),
    ],
)
def test_bad_configurations_name_the_key(key, value, message):
    whole = Config()
    whole.model.backbone = "llama"
    whole.model.llama.rope_scaling = "llama3"
    *path, name = key.split(".")
    node = whole
    for part in path:
        node = getattr(node, part)
    setattr(node, name, value)
    with pytest.raises(ConfigError, match=key) as error:
        validate(whole)
    assert message in str(error.value)
