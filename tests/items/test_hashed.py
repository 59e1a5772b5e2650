"""Items that share rows: which, and that everything built on them agrees with one table."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec import ranking
from jaxrec.config import Config, LossConfig, MeshConfig, ModelConfig, validate
from jaxrec.errors import ConfigError
from jaxrec.items import hashed, table
from jaxrec.layout import SegmentLayout
from jaxrec.model import recommender
from jaxrec.ranking import ItemIndex
from jaxrec.runtime import mesh as mesh_lib
from jaxrec.training import step as step_lib
from jaxrec.training.task import Task
from jaxrec.types import HistoryItems, Queries
from tests.training import standin
from tests.training.test_row_updates import LAYOUT, batch_at

ITEMS = 47


def config_of(kind, rows, **model):
    return ModelConfig(
        width=8, item_width=6, layers=1, heads=2, item_hash=kind, item_rows=rows, **model
    )


def model_of(kind, rows, loss="sampled_softmax", **model):
    losses = LossConfig(kind=loss, similarity="cosine", negatives=9, sampling="uniform")
    return recommender.build(config_of(kind, rows, **model), losses, LAYOUT, ITEMS)


@pytest.mark.parametrize("num_items", [1, 6, 7, 8, 100])
def test_quotient_and_remainder_tell_all_items_apart(num_items):
    config = config_of("quotient", 7)
    rows = np.asarray(hashed.rows_of(config, np.arange(num_items + 1)))
    assert len({tuple(pair) for pair in rows}) == num_items + 1
    assert rows[0].tolist() == [0, 0]
    assert (rows[1:] > 0).all()
    assert rows.max() < hashed.height(config, num_items)
    assert set(rows[1:, 0]).isdisjoint(rows[1:, 1])
    # one behind the last quotient would be a row that nobody uses
    assert hashed.height(config, num_items) <= max(rows.max() + 1, 1 + 7 + 1)


def test_hashed_rows_are_spread_evenly_and_pairs_are_rarely_shared():
    config, items = config_of("hash", 1000), 20_000
    rows = np.asarray(hashed.rows_of(config, np.arange(items + 1)))
    assert rows[0].tolist() == [0, 0]
    counts = np.bincount(rows[1:].reshape(-1), minlength=1001)
    assert counts[0] == 0
    assert len(counts) == hashed.height(config, items) == 1001
    # Poisson with mean 40: a standard deviation of 6.3
    assert 0.8 < counts[1:].std() / np.sqrt(40) < 1.2
    shared = items - len({tuple(pair) for pair in rows[1:]})
    assert shared == pytest.approx(items**2 / 2 / 1000**2, rel=0.3)
    # the two functions are not the same one shifted
    assert abs(np.corrcoef(rows[1:, 0], rows[1:, 1])[0, 1]) < 0.03


def test_rows_of_an_item_do_not_depend_on_the_catalog():
    config = config_of("hash", 13)
    few, many = (np.asarray(hashed.rows_of(config, np.arange(n))) for n in (5, 500))
    np.testing.assert_array_equal(few, many[:5])


def plain(model, params):
    """The same model with a row per item."""
    config = model.network.config
    embedding = hashed.vectors(config, params[table.ITEM][table.SHARED], np.arange(ITEMS + 1))
    unshared = ModelConfig(width=8, item_width=6, layers=1, heads=2)
    other = recommender.build(unshared, model.network.loss_config, LAYOUT, ITEMS)
    return other, table.join({table.EMBEDDING: embedding}, table.split(params)[1])


@pytest.mark.parametrize(("kind", "rows"), [("quotient", 7), ("hash", 12)])
@pytest.mark.parametrize("loss", ["sampled_softmax", "softmax"])
def test_loss_and_vectors_are_those_of_the_table_it_stands_for(kind, rows, loss):
    model = model_of(kind, rows, loss)
    params = jax.jit(model.init)(jax.random.key(0))
    assert params[table.ITEM][table.SHARED].shape == (
        hashed.height(model.network.config, ITEMS),
        6,
    )
    assert table.EMBEDDING not in params[table.ITEM]
    other, same = plain(model, params)
    batch, rng = batch_at(0), jax.random.key(1)
    (found, vectors), (wanted, whole) = (
        jax.jit(lambda p, m=m: (m.loss(p, batch, rng=rng)[0], m.item_vectors(p).vectors))(p)
        for m, p in ((model, params), (other, same))
    )
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    np.testing.assert_allclose(vectors, whole, atol=1e-6)


@pytest.mark.parametrize(
    ("update", "shape"),
    [pytest.param("adam", (1, 1), marks=pytest.mark.slow), ("adagrad", (2, 4))],
)
def test_a_step_moves_the_rows_that_its_items_share(update, shape):
    """The first update against gradients of the whole shared table."""
    config = standin.make_config(ema=0.0, grad_clip_norm=0.0, weight_decay=0.0, table_update=update)
    config.mesh = MeshConfig(data=shape[0], model=shape[1])
    model = model_of("hash", 99)
    config.model = model.network.config
    mesh = mesh_lib.make_mesh(config.mesh)
    parts = step_lib.assemble(config, Task(model.init, model.loss, model.negatives), mesh)
    before = mesh_lib.create(parts.new, parts.like)
    params = jax.device_get(before.params)
    state, metrics = parts.step(before, mesh_lib.put_batch(mesh, batch_at(0)), None)
    rng = jax.random.fold_in(jax.random.fold_in(jax.random.key(config.seed), 1), 0)

    def mean(params):
        value, weight, _ = model.loss(params, batch_at(0), rng=rng, train=True)
        return value / weight

    value, gradients = jax.jit(jax.value_and_grad(mean))(params)
    np.testing.assert_allclose(metrics.scalars["loss"], value, rtol=1e-5)
    g = np.asarray(gradients[table.ITEM][table.SHARED], np.float64)
    rate = float(metrics.scalars["learning_rate"])
    scale = np.sqrt(np.mean(g**2, axis=1, keepdims=True)) if update == "adagrad" else np.abs(g)
    wanted = params[table.ITEM][table.SHARED] - rate * g / (scale + 1e-8)
    np.testing.assert_allclose(state.params[table.ITEM][table.SHARED], wanted, rtol=2e-3, atol=2e-4)
    untouched = ~np.any(g != 0, axis=1)
    assert untouched.any()
    np.testing.assert_array_equal(
        np.asarray(state.params[table.ITEM][table.SHARED])[untouched],
        params[table.ITEM][table.SHARED][untouched],
    )


@pytest.mark.parametrize("shape", [None, (2, 4), (8, 1)])
def test_lists_and_ranks_without_a_table(shape):
    model = model_of("quotient", 7)
    params = jax.jit(model.init)(jax.random.key(0))
    plain = ItemIndex.of(jax.jit(model.item_vectors)(params))
    rng = np.random.default_rng(0)
    x = rng.normal(size=(8, 8)).astype(np.float32)
    targets = rng.integers(1, ITEMS + 1, 8).astype(np.int32)
    history = HistoryItems(
        np.stack([rng.permutation(ITEMS)[:3] + 1 for _ in x]).astype(np.int32),
        rng.normal(size=(8, 3, 2)).astype(np.float32),
    )
    mesh = None if shape is None else mesh_lib.make_mesh(MeshConfig(data=shape[0], model=shape[1]))
    index = model.item_index(params, mesh)
    assert index.rows is None
    queries = Queries(x, np.ones((8, 2), np.float32))
    np.testing.assert_array_equal(
        ranking.rank_of_targets(queries, index, targets, history=history, chunk=5),
        ranking.rank_of_targets(queries, plain, targets, history=history),
    )
    np.testing.assert_array_equal(
        ranking.top_k(queries, index, 6, chunk=5)[1], ranking.top_k(queries, plain, 6)[1]
    )


def test_a_large_catalog_takes_memory_for_its_rows_alone():
    """By XLA's plan: lists over 10⁷ items need no array that has a row for each."""
    losses = LossConfig(kind="sampled_softmax", similarity="cosine", sampling="uniform")
    config = ModelConfig(width=8, layers=1, heads=2, item_hash="hash", item_rows=1000)
    model = recommender.build(config, losses, SegmentLayout.full(4), 10**7)
    params = jax.eval_shape(model.init, jax.random.key(0))

    def lists(params, x):
        return ranking.top_k(Queries(x), model.item_index(params), 10)

    compiled = jax.jit(lists).lower(params, jax.ShapeDtypeStruct((2, 8), jnp.float32)).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 10**7  # not a byte per item


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model.item_rows": 0}, "with model.item_hash='hash' the number of shared rows"),
        ({"model.item_hash": "none"}, "with model.item_hash='none' 0 is needed"),
        ({"model.item_hash": "both"}, "allowed are none, quotient, hash"),
        ({"mesh.model": 2}, "loss.kind='softmax' makes all vectors"),
    ],
)
def test_what_does_not_go_together_is_refused(change, words):
    config = Config()
    config.model.item_hash, config.model.item_rows = "hash", 100
    validate(config)
    for key, value in change.items():
        group, name = key.split(".")
        setattr(getattr(config, group), name, value)
    with pytest.raises(ConfigError, match=words):
        validate(config)
