"""Vectors of texts as the item table: one scale, states, training, new items."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrec.config import TrainConfig
from jaxrec.items import text_table
from jaxrec.model import states
from jaxrec.model.initial import starting_from
from jaxrec.runtime import leaves
from jaxrec.training import optimizer as optimizer_lib
from tests.items.text_items import CONFIG, USER, VECTORS, batch_of, build
from tests.nn import parity


@pytest.fixture(scope="module")
def params():
    init = starting_from(build().init, text_table.leaves(VECTORS))
    return jax.jit(init)(jax.random.key(0))


def test_vectors_are_brought_to_one_scale():
    known = text_table.leaves(VECTORS)
    rows = (known["item/embedding"] - known["item/mean"]) * known["item/scale"]
    np.testing.assert_array_equal(rows[[0, 4]], np.zeros((2, 6)))  # at the mean: neutral
    present = np.delete(rows, [0, 4], axis=0)
    np.testing.assert_allclose(present.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(present.std(0), 1, rtol=1e-5)
    constant = VECTORS.copy()
    constant[:, 2] = 5.0
    assert text_table.standards(constant)[1][2] == 0


def test_a_state_holds_for_text_items(params):
    """Cached and masked predictions agree, as for ids."""
    model, batch = build(), batch_of()
    whole = np.asarray(jax.jit(model.predict)(params, batch).vectors)
    predict = jax.jit(functools.partial(states.predict_cached, model))
    cached = np.asarray(predict(params, batch).vectors)
    np.testing.assert_allclose(cached[:, 7:], whole[:, 7:], atol=1e-5)


def test_training_moves_everything_but_the_vectors(params):
    config = TrainConfig(weight_decay=0.1, warmup=1)
    frozen = frozenset(path for path in leaves.flatten(params) if path.startswith("item/"))
    optimizer = optimizer_lib.adamw(config, frozen)
    model, batch = build(), batch_of()
    state = optimizer.init(params)
    assert (
        sum(x.size for x in jax.tree.leaves(state))
        < 2 * sum(x.size for name, x in leaves.flatten(params).items() if name != "item/embedding")
        + 10
    )

    @jax.jit
    def step(params, state):
        grads = jax.grad(lambda p: model.loss(p, batch)[0])(params)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), grads

    moved, grads = step(params, state)
    assert not np.asarray(grads["item"]["embedding"]).any()
    for name in ("embedding", "mean", "scale"):
        np.testing.assert_array_equal(moved["item"][name], params["item"][name])
    kernel = "item_projection", "kernel"
    assert np.abs(moved[kernel[0]][kernel[1]] - params[kernel[0]][kernel[1]]).max() > 0


def test_new_items_are_scored_by_their_text(params):
    """A new item with an old item's text is scored like it; nothing else moves."""
    model = build()
    new = np.stack([VECTORS[7], np.zeros(6, np.float32)])
    more = text_table.append_items(params, new)
    table, old = (np.asarray(model.item_vectors(p).vectors) for p in (more, params))
    assert len(table) == parity.ITEMS + 3
    rows, old_rows = more["item"]["embedding"], params["item"]["embedding"]
    np.testing.assert_array_equal(rows[: parity.ITEMS + 1], old_rows)
    np.testing.assert_array_equal(rows[-2:], old_rows[np.array([7, 4])])
    # a matrix product of another height may be summed in another order
    np.testing.assert_allclose(table[: parity.ITEMS + 1], old, atol=1e-6)
    np.testing.assert_allclose(table[-2:], old[[7, 4]], atol=1e-6)
    with pytest.raises(ValueError, match=r"shape \(2, 5\): the table has rows of 6"):
        text_table.append_items(params, new[:, :5])


def test_adapters_are_trained_instead_of_what_they_adapt(params):
    config = dataclasses.replace(CONFIG, llama=dataclasses.replace(USER, lora_rank=2))
    model = build(config)
    init = starting_from(model.init, text_table.leaves(VECTORS))
    adapted = jax.jit(init)(jax.random.key(0))
    grads = jax.jit(jax.grad(lambda p: model.loss(p, batch_of())[0]))(adapted)
    layer = grads["compressor"]["encoder"]["layers"]["query"]
    assert not np.asarray(layer["kernel"]).any()
    assert np.asarray(layer["lora_b"]).any()
    without = jnp.abs(jax.jit(model.predict)(adapted, batch_of()).vectors).max()
    assert without > 0
