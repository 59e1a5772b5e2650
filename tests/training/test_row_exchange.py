"""Rows exchanged with their owners, against reading and adding them in NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from jaxrec.config import MeshConfig
from jaxrec.runtime import mesh as mesh_lib
from jaxrec.runtime.mesh import MODEL
from jaxrec.training.row_exchange import END, Asked, Exchange
from tests.training.test_row_updates import model_of, run, train_config

HEIGHT, WIDTH, COUNT, SHARED = 48, 3, 10, 5
SPLIT, OWNED, EVERYWHERE = mesh_lib.spec("batch"), PartitionSpec(MODEL), PartitionSpec()
CASES = [  # data, model, capacity, whether everyone wants the rows of one owner
    (8, 1, COUNT, False),
    (4, 2, COUNT, True),
    (2, 4, 3, False),
    (2, 4, 1, True),
    (1, 8, 3, True),
]


def problem(devices, seed, skew):
    """Distinct rows that each device asks for, then the height; rows that all ask for."""
    rng = np.random.default_rng(seed)
    own = np.full((devices, COUNT), HEIGHT, np.int32)
    for device in range(devices):
        # skew: everyone wants the first rows, which have one owner
        ids = np.arange(HEIGHT // 6) if skew else rng.permutation(HEIGHT)
        ids = np.sort(rng.permutation(ids)[: rng.integers(0, COUNT + 1)])
        own[device, : len(ids)] = ids
    shared = rng.integers(0, HEIGHT, SHARED).astype(np.int32)
    shared[0] = HEIGHT  # nothing
    return own, shared, rng


def split(mesh, compute, out_specs):
    """`compute` of (asked, table, own [D, N, W], shared [M, W]), on one device each."""

    def local(own, shared, table, own_rows, shared_rows):
        return compute(Asked(own[0], shared), table, own_rows[0], shared_rows)

    specs = (SPLIT, EVERYWHERE, OWNED, SPLIT, EVERYWHERE)
    return jax.jit(
        jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=out_specs, check_vma=False)
    )


@pytest.mark.parametrize(("data", "model", "capacity", "skew"), CASES)
def test_rows_and_sums_do_not_depend_on_mesh_and_capacity(data, model, capacity, skew):
    mesh = mesh_lib.make_mesh(MeshConfig(data=data, model=model))
    own, shared, rng = problem(mesh.size, 1 + capacity, skew)
    table = rng.standard_normal((HEIGHT, WIDTH)).astype(np.float32)
    gradient = rng.standard_normal((mesh.size, COUNT, WIDTH)).astype(np.float32)
    of_shared = rng.standard_normal((SHARED, WIDTH)).astype(np.float32)
    exchange = Exchange.of(mesh, HEIGHT, COUNT, capacity)

    def compute(asked, shard, gradient, of_shared):
        rows, of_all = exchange.fetch(asked, {"x": shard})

        def add(now, total):
            received = exchange.reduce(asked, now, {"x": gradient}, {"x": of_shared})
            there = received.ids < exchange.height
            assert received.rows["x"].shape == (*received.ids.shape, WIDTH)
            once = jnp.zeros(exchange.height, jnp.int32).at[received.ids].add(1, mode="drop")
            sums = total[0].at[received.ids].add(received.rows["x"], mode="drop")
            return sums, total[1] + once, total[2] + 1, total[3] | there.any()

        start = (
            jnp.zeros_like(shard),
            jnp.zeros(exchange.height, jnp.int32),
            jnp.int32(0),
            jnp.bool(False),
        )
        now, progress = exchange.round(asked, exchange.start(asked))
        sums, times, rounds, _ = exchange.over_rounds(asked, add, add(now, start), progress)
        return rows["x"][None], of_all["x"], sums, times, rounds[None]

    out = (SPLIT, EVERYWHERE, OWNED, OWNED, SPLIT)
    rows, of_all, sums, times, rounds = split(mesh, compute, out)(
        own, shared, table, gradient, of_shared
    )
    padded = np.concatenate([table, np.zeros((1, WIDTH), np.float32)])
    np.testing.assert_array_equal(rows, padded[own])
    np.testing.assert_array_equal(of_all, padded[shared])
    expected = np.zeros((HEIGHT + 1, WIDTH))
    np.add.at(expected, own, gradient)
    np.add.at(expected, shared, of_shared)
    np.testing.assert_allclose(sums, expected[:HEIGHT], atol=1e-5)
    assert np.asarray(times).max() <= 1  # of all rounds, one has a row
    asked_for = np.union1d(own, shared)
    assert (np.flatnonzero(np.asarray(times)) == asked_for[asked_for < HEIGHT]).all()
    assert len(set(np.asarray(rounds).tolist())) == 1
    assert (np.asarray(rounds)[0] > 1) == (capacity < COUNT and _longest(own, model) > capacity)


def _longest(own, owners):
    """The largest number of rows that a device asks an owner for."""
    owner = own // (HEIGHT // owners)
    return max(np.bincount(row[row < owners], minlength=1).max() for row in owner)


def test_capacity_is_an_even_share_and_some_more():
    mesh = mesh_lib.make_mesh(MeshConfig(data=2, model=4))
    assert Exchange.of(mesh, HEIGHT, 10_000).capacity == 3750
    assert Exchange.of(mesh, HEIGHT, 40).capacity == 40  # not worth a second round
    assert np.iinfo(np.int32).max == END


SMALL = functools.partial(Exchange.of, capacity=2)  # of small batches, whose share is not worth it


@pytest.mark.parametrize("bias", [pytest.param(False, marks=pytest.mark.slow), True])
def test_training_does_not_depend_on_the_mesh(bias, monkeypatch):
    """Losses, and the first norm, of 1 x 8, 2 x 4 and 4 x 2 devices, in rounds and in one."""
    config, model = train_config("adagrad"), model_of(bias=bias)

    def trace(data, model_axis):
        mesh = mesh_lib.make_mesh(MeshConfig(data=data, model=model_axis))
        state, metrics = run(config, model, mesh)
        values = [(m.scalars["loss"], m.scalars["grad_norm"]) for m in metrics]
        return np.asarray(values), jax.device_get(state.params)

    alone, params = trace(1, 1)
    monkeypatch.setattr(Exchange, "of", SMALL)
    for shape in [(1, 8), (2, 4), (4, 2)]:
        found, of_mesh = trace(*shape)
        np.testing.assert_allclose(found[:, 0], alone[:, 0], rtol=1e-6)
        np.testing.assert_allclose(found[0], alone[0], rtol=1e-6)
        for a, b in zip(jax.tree.leaves(of_mesh), jax.tree.leaves(params), strict=True):
            # the first steps of Adam and Adagrad magnify the order of sums
            np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-5)


def test_nothing_of_the_size_of_a_batch_travels(monkeypatch):
    """By the compiled text of a step: every collective is smaller than the rows of the batch."""
    from jaxrec.runtime import plan
    from tests.training.test_row_updates import assembled, batch_at

    monkeypatch.setattr(Exchange, "of", SMALL)
    config, model = train_config("adagrad"), model_of()
    mesh = mesh_lib.make_mesh(MeshConfig(data=2, model=4))
    training = assembled(config, model, mesh)
    batch = mesh_lib.put_batch(mesh, batch_at(0))
    with jax.set_mesh(mesh):
        text = training.step.lower(training.like, batch, None).compile().as_text()
    moved = plan.collectives(text)
    assert any(one.kind == "all-to-all" for one, _ in moved)
    rows_of_batch = batch.items.size * model.config.item_width
    for one, _ in moved:
        assert all(np.prod(shape) < rows_of_batch for shape in one.shapes), one
