"""The analytic cost against what XLA counts in the compiled program."""

import jax
import jax.numpy as jnp
import pytest

from jaxrec.config import LossConfig, ModelConfig
from jaxrec.layout import SegmentLayout
from jaxrec.model import cost, recommender, states
from jaxrec.serving import state_rows
from tests.reference.elementwise import elementwise_flops

USERS = 2


def xla_flops(config: ModelConfig, layout: SegmentLayout) -> float:
    """XLA's count of one forward over a layout, embeddings in, outputs out."""
    model = recommender.build(config, LossConfig(), layout, 50)
    params = jax.eval_shape(model.init, jax.random.key(0))
    sizes = jnp.asarray([[n for n, _ in layout.segments]] * USERS, jnp.int32)

    def run(params, items, times):
        return model.forward(params, items, layout, sizes, times)[0]

    items = jax.ShapeDtypeStruct((USERS, layout.num_items), jnp.int32)
    times = jax.ShapeDtypeStruct((USERS, layout.num_items + 1), jnp.int32)
    return jax.jit(run).lower(params, items, times).compile().cost_analysis()["flops"]


def model_config(backbone: str, block: str, width: int, heads: int, **kwargs) -> ModelConfig:
    config = ModelConfig(backbone=backbone, width=width, heads=heads, attention="dense", **kwargs)
    config.sasrec.block = block
    config.hstu.position_bias = config.hstu.time_bias = False
    return config


@pytest.mark.parametrize(("backbone", "block"), [("hstu", "classic"), ("sasrec", "classic")])
@pytest.mark.parametrize(
    ("width", "heads", "layers", "length"),
    # wide and short: projections; narrow heads and long: attention; the rest between
    [(64, 4, 2, 32), (64, 4, 1, 256), (32, 2, 2, 100), (128, 1, 1, 64), (64, 8, 3, 128)],
)
def test_dense_forward_is_within_5_percent_of_xla(backbone, block, width, heads, layers, length):
    config = model_config(backbone, block, width, heads, layers=layers)
    layout = SegmentLayout.full(length)
    products = cost.forward_flops(config, layout, "dense")
    found = USERS * (products + elementwise_flops(config, layout, "dense"))
    assert found == pytest.approx(xla_flops(config, layout), rel=0.05)


@pytest.mark.parametrize("backbone", ["hstu", "sasrec"])
def test_wide_heads_need_no_elementwise_count(backbone):
    """Where heads are wide, products alone are within 5 %: the rest is small beside them."""
    config = model_config(backbone, "classic", 128, 1, layers=2)
    layout = SegmentLayout.full(128)
    found = USERS * cost.forward_flops(config, layout, "dense")
    assert found == pytest.approx(xla_flops(config, layout), rel=0.05)


def test_modern_block_and_biases_are_within_5_percent():
    config = model_config("sasrec", "modern", 64, 4, layers=2)
    biased = model_config("hstu", "classic", 64, 4, layers=2)
    biased.hstu.position_bias = biased.hstu.time_bias = True
    for given in (config, biased):
        layout = SegmentLayout.full(96)
        products = cost.forward_flops(given, layout, "dense")
        found = USERS * (products + elementwise_flops(given, layout, "dense"))
        assert found == pytest.approx(xla_flops(given, layout), rel=0.05)


def test_compressed_layout_computed_densely_is_within_5_percent():
    config = model_config("hstu", "classic", 64, 4, layers=2)
    layout = SegmentLayout.stream(30, 2, 3)
    products = cost.forward_flops(config, layout, "dense")
    found = USERS * (products + elementwise_flops(config, layout, "dense"))
    assert found == pytest.approx(xla_flops(config, layout), rel=0.05)
    assert cost.forward_flops(config, layout) < products  # what is visible is less


@pytest.mark.parametrize("token_input", ["learned", "pooled"])
@pytest.mark.parametrize("backbone", ["hstu", "sasrec"])
def test_a_request_is_within_5_percent_of_xla(backbone, token_input):
    """K and V of the first layer, which no state holds, are counted as they are computed."""
    config = model_config(backbone, "classic", 64, 1, layers=2, token_input=token_input)
    layout = SegmentLayout.stream(30, 8, 4)
    model = recommender.build(config, LossConfig(), layout, 50)
    params = jax.eval_shape(model.init, jax.random.key(0))
    state = jax.eval_shape(lambda: states.empty(model, USERS))
    run = jax.jit(lambda params, state: states.recent_outputs(model, params, state))
    counted = run.lower(params, state).compile().cost_analysis()["flops"]
    request = layout.request()
    found = cost.forward_flops(config, request, "dense")
    found = USERS * (found + elementwise_flops(config, request, "dense"))
    assert found == pytest.approx(counted, rel=0.05)
    whole = config.layers * request.length * cost.dense_flops(config)
    made_again = cost.forward_flops(config, request) - whole
    if token_input == "pooled":  # 32 tokens beside 30 positions
        assert made_again > 0.1 * whole


@pytest.mark.parametrize("state", ["kv", "embedding"])
@pytest.mark.parametrize("half_lives", [(), (4.0, 0.0)])
def test_bytes_of_a_state_are_those_of_a_row_by_part(state, half_lives):
    config = ModelConfig(state=state, repeat_half_lives=half_lives, width=32, heads=4, layers=3)
    layout = SegmentLayout.stream(30, 2, 3, recent_min=5)
    model = recommender.build(config, LossConfig(), layout, 50)
    spec = state_rows.row_spec(model, "float32", 0)
    size = {field.name: field.nbytes for field in spec.fields}
    found = cost.state_bytes(config, layout)
    vectors = [size.get(f"tokens.{name}", 0) for name in ("k", "v", "outputs")]
    assert found.vectors == sum(vectors)
    assert found.remembered == size.get("memory", 0) + size.get("memory_times", 0)
    assert bool(found.remembered) == bool(half_lives)
    assert found.pending == size["items"] + size["times"]
    assert found.total == spec.row_bytes
