"""What every encoder shares: depth, rematerialisation, precision, K/V in and out."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.config import LossConfig, ModelConfig
from jaxrec.layout import SegmentLayout
from jaxrec.model import recommender, states
from tests.nn import parity

LAYOUT = SegmentLayout.stream(3, 2, 2)
BACKBONES = ("hstu", "sasrec", "llama")


def build(**more):
    config = ModelConfig(width=8, heads=2, layers=2, **more)
    return recommender.build(config, LossConfig(), LAYOUT, parity.ITEMS)


def forward(model, params, train=False, seed=0):
    items, lengths, times = parity.histories(LAYOUT)
    rng = jax.random.key(seed) if train else None
    return model.forward(params, items, LAYOUT, lengths, times, train=train, rng=rng)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_rematerialisation_changes_no_gradient(backbone):
    params = parity.random_params(build(backbone=backbone))
    gradients = [
        jax.jit(jax.grad(lambda p, m=model: jnp.square(forward(m, p)[0]).mean()))(params)
        for model in (build(backbone=backbone), build(backbone=backbone, remat=True))
    ]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), *gradients)


def test_what_is_kept_is_not_computed_again():
    """By XLA's count of a gradient: all in the backward pass again, element-wise work alone, no."""
    counted = []
    for remat, keep in ((True, "nothing"), (True, "products"), (False, "nothing")):
        model = build(backbone="sasrec", remat=remat, remat_keep=keep)
        params = jax.eval_shape(model.init, jax.random.key(0))
        gradient = jax.jit(jax.grad(lambda p, m=model: jnp.square(forward(m, p)[0]).mean()))
        counted.append(gradient.lower(params).compile().cost_analysis()["flops"])
    assert counted[0] > counted[1] > counted[2]


@pytest.mark.parametrize("backbone", BACKBONES)
def test_bfloat16_compute(backbone):
    """Parameters and outputs stay float32, stored K/V are bfloat16, values are near."""
    model = build(backbone=backbone, dtype="bfloat16")
    params = parity.random_params(model)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}
    y, kv = jax.jit(lambda p: forward(model, p))(params)
    exact, _ = jax.jit(lambda p: forward(build(backbone=backbone), p))(params)
    assert y.dtype == jnp.float32
    assert kv.k.dtype == kv.v.dtype == jnp.bfloat16
    valid = LAYOUT.valid(parity.histories(LAYOUT)[1])
    error = np.abs(np.asarray(y - exact))[valid]
    spread = np.abs(np.asarray(exact))[valid].max()
    assert 0 < error.max() < 0.1 * spread


def test_dropout_is_of_training_alone():
    model = build(dropout=0.5, embed_dropout=0.0)
    params = parity.random_params(model)
    run = jax.jit(lambda p, seed: forward(model, p, train=True, seed=seed)[0], static_argnums=1)
    assert np.abs(run(params, 1) - run(params, 2)).max() > 1e-3
    np.testing.assert_array_equal(run(params, 1), run(params, 1))
    still = build(dropout=0.0, embed_dropout=0.0)
    a, _ = forward(still, params, train=True)
    b, _ = forward(model, params)
    np.testing.assert_allclose(a, b, atol=1e-6)


def test_a_layout_with_cache_needs_its_kv():
    model = build()
    params = parity.random_params(model)
    items, lengths, times = parity.histories(LAYOUT)
    request = LAYOUT.request()
    recent = request.num_items
    with pytest.raises(ValueError, match="4 cached tokens but kv is None"):
        model.forward(params, items[:, -recent:], request, lengths[:, -1:], times[:, -recent - 1 :])


def test_a_state_of_the_other_kind_is_refused():
    model, other = build(), build(state="embedding")
    params = parity.random_params(model)
    items, lengths, times = parity.histories(LAYOUT)
    request = LAYOUT.request()
    recent = request.num_items
    tokens = states.empty(other, len(items)).tokens
    recent_events = items[:, -recent:], request, lengths[:, -1:], times[:, -recent - 1 :]
    with pytest.raises(ValueError, match="'kv' keeps something else than TokenOutputs"):
        model.forward(params, *recent_events, kv=tokens)


def test_layers_are_stacked():
    """Depth is one leading axis: layers with equal weights are one layer applied again."""
    once, twice = (
        recommender.build(
            dataclasses.replace(build().network.config, layers=layers),
            LossConfig(),
            LAYOUT,
            parity.ITEMS,
        )
        for layers in (2, 3)
    )
    params = parity.random_params(once)
    layer = params["compressor"]["encoder"]["layers"]
    doubled = jax.tree.map(lambda a: np.concatenate([a, a[-1:]]), layer)
    deep = {**params, "compressor": {**params["compressor"], "encoder": {"layers": doubled}}}
    _, shallow_kv = forward(once, params)
    _, deep_kv = forward(twice, deep)
    assert shallow_kv.k.shape[0] == 1
    np.testing.assert_allclose(deep_kv.k[0], shallow_kv.k[0], atol=1e-6)
    assert np.abs(deep_kv.k[1] - deep_kv.k[0]).max() > 1e-3
