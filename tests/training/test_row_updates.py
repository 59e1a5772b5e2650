"""Steps that touch rows against the same with the whole table, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.config import Config, LossConfig, MeshConfig, ModelConfig, validate
from jaxrec.errors import ConfigError
from jaxrec.items import table
from jaxrec.layout import SegmentLayout
from jaxrec.model import recommender
from jaxrec.runtime import mesh as mesh_lib
from jaxrec.runtime.leaves import path_name
from jaxrec.training import device_rows, row_updates
from jaxrec.training import optimizer as optimizer_lib
from jaxrec.training import step as step_lib
from jaxrec.training.task import Task
from jaxrec.training.update import Gradient
from jaxrec.types import Batch
from tests.training import standin

ITEMS, USERS = 47, 8
LAYOUT = SegmentLayout.stream(3, 1, 2, 1)


def model_of(kind="sampled_softmax", similarity="cosine", bias=False):
    config = ModelConfig(width=8, item_width=6, layers=1, heads=2, dropout=0.1, item_bias=bias)
    loss = LossConfig(kind=kind, similarity=similarity, negatives=9, sampling="uniform")
    return recommender.build(config, loss, LAYOUT, ITEMS)


def batch_at(step, layout=LAYOUT):
    rng = np.random.default_rng(step)
    slots = layout.num_items + 1
    items = rng.integers(0, 12, (USERS, slots)).astype(np.int32)  # few items, often repeated
    lengths = np.asarray([[n for n, _ in layout.segments]] * USERS, np.int32)
    times = np.sort(rng.integers(0, 10**6, (USERS, slots)), axis=1).astype(np.int32)
    index = np.arange(USERS, dtype=np.int32)
    return Batch(items, times, lengths, np.ones((USERS, slots), np.float32), index, index)


def train_config(update, **train):
    values = {
        "ema": 0.0,
        "grad_clip_norm": 0.5,
        "weight_decay": 0.01,
        "table_update": update,
        **train,
    }
    return standin.make_config(**values)


def assembled(config, model, mesh, loss=None):
    return step_lib.assemble(config, Task(model.init, loss or model.loss, model.negatives), mesh)


def run(config, model, mesh=None, steps=3, loss=None):
    mesh = mesh or mesh_lib.make_mesh(MeshConfig(data=1))
    training = assembled(config, model, mesh, loss)
    state, trace = mesh_lib.create(training.new, training.like), []
    for number in range(steps):
        batch = mesh_lib.put_batch(mesh, batch_at(number))
        state, metrics = training.step(state, batch, None)
        trace.append(jax.device_get(metrics))
    return state, trace


def by_hand(config, model, steps=3):
    """The item table and losses when every row takes part in every step.

    Only touched rows move, every leaf of the table by itself.
    """
    config = config.train
    params = jax.device_get(model.init(jax.random.fold_in(jax.random.key(0), 0)))
    dense, rate = optimizer_lib.adamw(config), optimizer_lib.schedule(config)
    leaves, rest = table.split(params)
    opt_state = dense.init(rest)
    leaves = {name: np.asarray(leaf, np.float64) for name, leaf in leaves.items()}
    total = {name: np.zeros(len(leaf)) for name, leaf in leaves.items()}
    mu, nu = ({name: np.zeros_like(leaf) for name, leaf in leaves.items()} for _ in range(2))
    trace = []

    @jax.jit
    @jax.value_and_grad
    def mean(params, batch, rng):
        value, weight, _ = model.loss(params, batch, rng=rng, train=True)
        return value / weight

    @jax.jit
    def clipped(gradients):
        norm = jnp.sqrt(jnp.sum(optimizer_lib.squared_norms(gradients)))
        return optimizer_lib.clip(gradients, norm, config.grad_clip_norm)

    dense_update = jax.jit(dense.update)
    for number in range(steps):
        rng = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 1), number)
        single = {name: jnp.asarray(leaf, jnp.float32) for name, leaf in leaves.items()}
        value, gradients = mean(table.join(single, rest), batch_at(number), rng)
        trace.append(float(value))
        gradients = jax.device_get(clipped(gradients))
        row_gradients, rest_gradients = table.split(gradients)
        updates, opt_state = dense_update(rest_gradients, opt_state, rest)
        rest = jax.tree.map(np.add, rest, updates)
        for name, gradient in row_gradients.items():
            g = np.asarray(gradient, np.float64)
            columns = tuple(range(1, g.ndim))
            rows = np.flatnonzero(np.any(g != 0, axis=columns))
            if config.table_update == "adagrad":
                total[name][rows] += np.mean(g[rows] ** 2, axis=columns)
                scale = np.sqrt(total[name][rows]) + 1e-8
                move = g[rows] / scale.reshape(-1, *(1,) * len(columns))
            else:
                mu[name][rows] = 0.9 * mu[name][rows] + 0.1 * g[rows]
                nu[name][rows] = 0.999 * nu[name][rows] + 0.001 * g[rows] ** 2
                t = number + 1
                move = mu[name][rows] / (1 - 0.9**t)
                move /= np.sqrt(nu[name][rows] / (1 - 0.999**t)) + 1e-8
            decay = 0.0 if name == table.BIAS else 0.01
            leaves[name][rows] -= float(rate(number)) * (move + decay * leaves[name][rows])
    return leaves, rest, trace


@pytest.mark.parametrize(
    ("update", "shape", "bias"),
    [
        pytest.param("adagrad", (1, 1), False, marks=pytest.mark.slow),  # as on several devices
        ("adam", (1, 1), False),
        ("adagrad", (2, 4), False),
        ("adagrad", (2, 4), True),
    ],
)
def test_touched_rows_equal_the_whole_table(update, shape, bias):
    config, model = train_config(update), model_of(bias=bias)
    mesh = mesh_lib.make_mesh(MeshConfig(data=shape[0], model=shape[1]))
    state, trace = run(config, model, mesh)
    expected, expected_rest, losses = by_hand(config, model)
    np.testing.assert_allclose([m.scalars["loss"] for m in trace], losses, rtol=1e-5)
    leaves, rest = table.split(state.params)
    assert set(leaves) == set(expected)
    for name, leaf in leaves.items():
        np.testing.assert_allclose(leaf, expected[name], rtol=2e-3, atol=2e-5)
        assert leaf.sharding.shard_shape(leaf.shape)[0] == (ITEMS + 1) // shape[1]
    for a, b in zip(jax.tree.leaves(rest), jax.tree.leaves(expected_rest), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-5)


@pytest.mark.parametrize("rule", ["adagrad", "adam"])
def test_a_bias_moves_by_accumulators_of_its_own(rule):
    """Two updates of rows 2 and 4 by hand; weight decay leaves a bias alone."""
    config = train_config(rule).train
    mesh = mesh_lib.make_mesh(MeshConfig(data=1))
    update = row_updates.RowUpdate(
        None, None, optimizer_lib.adamw(config), ModelConfig(item_bias=True), config, mesh
    )
    bias = jnp.arange(6.0)
    params = {"item": {"embedding": jnp.ones((6, 2)), "bias": bias}, "kernel": jnp.ones((2, 2))}
    opt_state = update.init(params)
    g = np.asarray([0.0, 0.5, -2.0])  # of rows 0, 2, 4; nothing reaches row 0
    expected, total, mu, nu = np.arange(6.0)[[0, 2, 4]], np.zeros(3), np.zeros(3), np.zeros(3)
    own = jnp.asarray(g[1:], jnp.float32)[None]  # items that users have, ascending

    @jax.jit  # one program: operation by operation it is twenty seconds of compiling
    def updated(params, opt_state, step):
        leaves, rest = table.split(params)
        items = jnp.asarray([[4, 2]])
        touched = device_rows.touch(ModelConfig(), leaves, items, jnp.zeros(1, int), mesh=mesh)
        zeros = jax.tree.map(jnp.zeros_like, rest)
        gradients = {
            "embedding": device_rows.Pair(jnp.zeros((1, 2, 2)), jnp.zeros((2, 2))),
            "bias": device_rows.Pair(own, jnp.zeros(2)),
        }
        rows, squares, ids = device_rows.reduce(touched, gradients)
        gradient = Gradient(
            jnp.float32(0), {}, table.join(rows, zeros), jnp.zeros(3), (touched, ids)
        )
        new = update.apply(gradient, params, opt_state, step=step, finite=jnp.bool(True))
        return new, squares["bias"]

    for step in range(2):
        (params, opt_state), square = updated(params, opt_state, jnp.int32(step))
        assert float(square) == pytest.approx((g**2).sum())
        total, mu, nu = total + g**2, 0.9 * mu + 0.1 * g, 0.999 * nu + 0.001 * g**2
        if rule == "adagrad":
            move = g / (np.sqrt(total) + 1e-8)
        else:
            t = step + 1
            move = mu / (1 - 0.9**t) / (np.sqrt(nu / (1 - 0.999**t)) + 1e-8)
        expected = expected - float(optimizer_lib.schedule(config)(step)) * move
    np.testing.assert_allclose(params["item"]["bias"][np.asarray([0, 2, 4])], expected, rtol=1e-6)
    others = np.asarray([1, 3, 5])
    np.testing.assert_array_equal(params["item"]["bias"][others], bias[others])
    np.testing.assert_array_equal(params["item"]["embedding"], np.ones((6, 2)))
    paths = jax.tree_util.tree_leaves_with_path(opt_state["rows"])
    assert all(table.has_item_rows(path_name(path)) for path, _ in paths)
    assert len(paths) == (2 if rule == "adagrad" else 4)


@pytest.mark.parametrize("kind", [pytest.param("bce", marks=pytest.mark.slow), "gbce"])
def test_every_sampled_loss(kind):
    config, model = train_config("adagrad"), model_of(kind, "dot")
    _, trace = run(config, model, steps=1)
    _, _, losses = by_hand(config, model, steps=1)
    np.testing.assert_allclose(trace[0].scalars["loss"], losses[0], rtol=1e-5)


def test_other_rows_keep_every_bit():
    config, model = train_config("adam"), model_of()
    key = jax.random.fold_in(jax.random.key(0), 0)
    before = np.asarray(jax.jit(model.init)(key)[table.ITEM][table.EMBEDDING])
    state, _ = run(config, model, steps=1)
    after = np.asarray(state.params[table.ITEM][table.EMBEDDING])
    rng = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 1), 0)
    drawn = np.asarray(model.negatives(rng, None).ids)
    seen = np.union1d(batch_at(0).items, drawn)
    others = np.setdiff1d(np.arange(ITEMS + 1), seen)
    assert len(others) > 10
    np.testing.assert_array_equal(before[others], after[others])
    assert (before[drawn] != after[drawn]).any(axis=1).all()


def test_a_step_that_is_not_finite_changes_nothing():
    config, model = train_config("adagrad"), model_of()

    def broken(params, batch, **kwargs):
        total, weight, metrics = model.loss(params, batch, **kwargs)
        return total * jnp.float32(np.inf), weight, metrics

    mesh = mesh_lib.make_mesh(MeshConfig(data=1))
    state, trace = run(config, model, mesh, steps=1, loss=broken)
    assert not step_lib.is_finite(trace[0])
    assert "the loss is inf" in step_lib.culprit(trace[0], state.params)
    fresh = jax.jit(assembled(config, model, mesh).new)()
    jax.tree.map(
        np.testing.assert_array_equal,
        jax.device_get(fresh._replace(step=0)),
        jax.device_get(state._replace(step=0)),
    )


def test_a_step_does_not_read_the_whole_table():
    """By XLA's count: a hundred times the catalog, the same work and the same temporaries."""
    costs = []
    for items in (10**4, 10**6):
        config = train_config("adagrad")
        model = recommender.build(
            ModelConfig(width=8, layers=1, heads=2),
            LossConfig(
                kind="sampled_softmax", similarity="cosine", negatives=9, sampling="uniform"
            ),
            LAYOUT,
            items,
        )
        mesh = mesh_lib.make_mesh(MeshConfig(data=1))
        training = assembled(config, model, mesh)
        batch = mesh_lib.put_batch(mesh, batch_at(0))
        compiled = training.step.lower(training.like, batch, None).compile()
        plan = compiled.memory_analysis()
        assert plan.alias_size_in_bytes >= items * 8 * 4  # updated in place
        costs.append((compiled.cost_analysis()["flops"], plan.temp_size_in_bytes))
    assert costs[0] == pytest.approx(costs[1], rel=0.02)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"loss.kind": "softmax"}, "loss.kind='softmax' moves every row"),
        ({"train.ema": 0.5}, "train.ema=0.5"),
        ({"train.table_update": "sgd"}, "allowed are adamw, adagrad, adam"),
    ],
)
def test_what_needs_every_row_is_refused(change, words):
    config = Config()
    config.loss.kind, config.train.table_update = "sampled_softmax", "adagrad"
    validate(config)
    for key, value in change.items():
        group, name = key.split(".")
        setattr(getattr(config, group), name, value)
    with pytest.raises(ConfigError, match=words):
        validate(config)
