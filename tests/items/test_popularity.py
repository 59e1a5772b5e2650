"""Item biases: popularity at the start, whatever the loss and wherever the table lies."""

import jax
import numpy as np
import pytest

from jaxrec import config as configs
from jaxrec.config import Config, LossConfig, MeshConfig, ModelConfig
from jaxrec.errors import ConfigError
from jaxrec.items import popularity
from jaxrec.layout import SegmentLayout
from jaxrec.model import recommender
from jaxrec.model.initial import starting_from
from jaxrec.model.network import initial_scale
from jaxrec.model.parameters import has_item_rows
from jaxrec.runtime import mesh as mesh_lib
from jaxrec.session import Session

COUNTS = np.asarray([0, 7, 0, 100, 3, 1, 3, 20])
LAYOUT = SegmentLayout.stream(3, 1, 2, recent_min=1)
LOSSES = {
    "dot": LossConfig(),
    "temperature": LossConfig(similarity="cosine", temperature=0.05),
    "learned scale": LossConfig(similarity="cosine"),
}


def build(loss=LOSSES["dot"], **model):
    config = ModelConfig(width=8, layers=1, heads=2, item_bias=True, **model)
    return recommender.build(config, loss, LAYOUT, len(COUNTS) - 1)


def test_log_popularity():
    biases = popularity.log_popularity(COUNTS)
    assert biases[0] == 0
    assert biases.dtype == np.float32
    np.testing.assert_allclose(biases[1:].mean(), 0, atol=1e-6)
    np.testing.assert_allclose(np.diff(biases[1:3]), [-np.log(8)], rtol=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_logits_of_a_user_of_whom_nothing_is_known_are_popularity(name):
    """Before training, for an output of zeros: scores times scale are the log of the counts."""
    loss = LOSSES[name]
    model = build(loss)
    known = popularity.leaves(COUNTS, initial_scale(loss))
    params = starting_from(model.init, known)(jax.random.key(0))
    x = np.asarray(model.queries(params, np.zeros((1, 8), np.float32)).vectors)[0]
    items = model.item_vectors(params)
    logits = float(model.scale(params)) * (np.asarray(items.vectors) @ x + items.bias)
    np.testing.assert_allclose(logits, popularity.log_popularity(COUNTS), rtol=1e-5)


def test_vectors_that_enter_the_encoder_have_no_bias():
    model = build(item_width=6)
    params = model.init(jax.random.key(0))
    assert params["item"]["embedding"].shape == (8, 6)
    assert params["item"]["bias"].shape == (8,)
    other = {**params, "item": {**params["item"], "bias": params["item"]["bias"] + 5.0}}
    items = np.asarray([[3, 1, 7, 4, 5, 1, 2, 6, 3]])
    lengths, times = np.asarray([[3, 3, 3]]), np.arange(10)[None]
    ask = jax.jit(lambda p: model.forward(p, items, LAYOUT, lengths, times)[0])
    np.testing.assert_array_equal(ask(params), ask(other))
    items = [model.item_vectors(p) for p in (params, other)]
    np.testing.assert_array_equal(items[0].vectors, items[1].vectors)
    np.testing.assert_allclose(items[1].bias - items[0].bias, 5.0, rtol=1e-6)


def test_biases_arrive_where_the_table_is_split():
    model = build()
    known = popularity.leaves(COUNTS, initial_scale(LOSSES["dot"]))
    init = starting_from(model.init, known)
    mesh = mesh_lib.make_mesh(MeshConfig(data=2, model=4))
    like = mesh_lib.abstract(mesh, lambda: init(jax.random.key(0)), has_item_rows)
    placed = mesh_lib.create(lambda: init(jax.random.key(0)), like)["item"]["bias"]
    assert placed.sharding.spec[0] == "model"
    np.testing.assert_array_equal(placed, popularity.log_popularity(COUNTS))


def test_a_run_starts_at_the_popularity_of_its_training_events(tmp_path):
    config = Config()
    config.data.dataset, config.data.min_item_events = "synthetic", 1
    config.data.synthetic.users, config.data.synthetic.items = 20, 30
    config.data.synthetic.events = 12
    config.data.holdout = 2
    config.layout.segment_size, config.layout.max_segments = 3, 2
    config.model.width, config.model.layers, config.model.heads = 8, 2, 2
    config.model.item_bias = True
    session = Session(config, tmp_path)
    params = session.init()(jax.random.key(0))
    expected = popularity.log_popularity(session.prepared.counts)
    assert expected.std() > 0
    np.testing.assert_array_equal(params["item"]["bias"], expected)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [("item_hash", "hash", "model.item_hash=none"), ("texts", "folder", "needed is False")],
)
def test_items_without_a_row_to_learn_have_no_bias(key, value, words):
    config = Config()
    config.model.item_bias = True
    if key == "texts":
        config.model.texts.model = value
    else:
        config.model.item_hash, config.model.item_rows = value, 100
    with pytest.raises(ConfigError, match=f"model.item_bias=True.*{words}"):
        configs.validate(config)
