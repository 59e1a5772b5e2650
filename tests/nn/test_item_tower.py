"""Item vectors: packed equals alone, both poolings, chunks and gradients."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.config import LlamaConfig, ModelConfig
from jaxrec.data import item_tokens as texts
from jaxrec.nn.item_tower import ItemTower
from jaxrec.nn.text_model import TextModel

CONFIG = ModelConfig(backbone="llama", width=8, heads=2, layers=2, llama=LlamaConfig(kv_heads=1))
MODEL = TextModel(CONFIG, 20)
LENGTHS = (3, 5, 1, 4, 2)


def tower_of(pooling, **more):
    tower = ItemTower(
        dataclasses.replace(MODEL, config=dataclasses.replace(CONFIG, **more)), pooling
    )
    shapes = jax.eval_shape(tower.init, jax.random.key(0))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda s: 0.4 * rng.standard_normal(s.shape).astype(np.float32), shapes)
    return tower, params


def tokenized_texts():
    rng = np.random.default_rng(1)
    offsets = np.concatenate([[0], np.cumsum(LENGTHS)])
    return texts.TokenizedTexts(rng.integers(0, 20, offsets[-1]).astype(np.int32), offsets, 0)


def alone(tower, params, tokenized, text):
    """The definition: one text in a row of its own length."""
    content = tokenized.tokens[tokenized.offsets[text] : tokenized.offsets[text + 1]][None]
    x = params["decoder"]["embedding"][content]
    if tower.pooling == "token":
        x = np.concatenate([x, params["token"][None, None]], axis=1)
    ones = np.ones(x.shape[:2], np.int32)
    place = np.arange(x.shape[1], dtype=np.int32)[None]
    y, _ = tower.text.network.apply({"params": params["decoder"]}, x, ones, place)
    return y[0, -1] if tower.pooling == "token" else y[0].mean(0)


@pytest.mark.parametrize("pooling", ["mean", "token"])
@pytest.mark.parametrize("backend", ["blocked", "dense"])
def test_packed_vectors_are_those_of_texts_alone(pooling, backend):
    tower, params = tower_of(pooling, attention=backend)
    tokenized = tokenized_texts()
    ((packed, order),) = texts.pack(tokenized, range(5), 4, 8, end=tower.end, devices=4)
    vectors = tower.vectors(params, *packed, 7)
    assert vectors.dtype == jnp.float32
    for number, text in enumerate(order):
        expected = alone(tower, params, tokenized, text)
        np.testing.assert_allclose(vectors[number], expected, atol=1e-5)
    np.testing.assert_array_equal(vectors[5:], np.zeros((2, 8)))


def test_chunks_change_no_gradient():
    tower, params = tower_of("token", remat=True)
    ((packed, _),) = texts.pack(tokenized_texts(), range(5), 4, 8, end=tower.end, devices=4)

    def loss(params, rows):
        return jnp.square(tower.vectors(params, *packed, 5, rows=rows)).sum()

    whole, parts = (jax.jit(jax.grad(loss), static_argnums=1)(params, r) for r in (0, 2))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), whole, parts)
    assert np.abs(whole["token"]).max() > 0
    with pytest.raises(ValueError, match="4 rows cannot be encoded 3 at a time"):
        loss(params, 3)


def test_a_pretrained_decoder_gets_a_new_token():
    tower, params = tower_of("token")
    adopted = tower.adopt(params["decoder"], jax.random.key(1))
    assert adopted["decoder"] is params["decoder"]
    assert adopted["token"].shape == (8,)
    assert set(ItemTower(MODEL, "mean").adopt(params["decoder"], jax.random.key(1))) == {"decoder"}


def test_unknown_pooling():
    with pytest.raises(ValueError, match="pooling='max': allowed are mean, token"):
        ItemTower(MODEL, "max")
