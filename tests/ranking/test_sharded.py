"""A split catalog against the whole one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.config import MeshConfig
from jaxrec.objective import losses
from jaxrec.ranking import retrieval, sharded
from jaxrec.runtime import mesh as mesh_lib
from jaxrec.runtime import plan

ITEMS, ROWS, WIDTH = 29, 32, 4


@pytest.fixture(scope="module")
def catalog():
    rng = np.random.default_rng(0)
    table = rng.normal(size=(ROWS, WIDTH)).astype(np.float32)
    table[5] = table[20]  # a tie across shards
    table[7] = table[8]  # and one inside
    table[ITEMS + 1 :] = 100.0  # rows behind the catalog would win everything
    x = rng.normal(size=(8, WIDTH)).astype(np.float32)
    targets = np.asarray([1, 5, 20, 7, 8, 29, 14, 16], np.int32)
    return x, table, targets


@pytest.mark.parametrize(("data", "model", "chunk"), [(1, 8, 3), (2, 4, 16384), (8, 1, 5)])
def test_lists_and_ranks_are_those_of_the_whole_catalog(catalog, data, model, chunk):
    x, table, targets = catalog
    mesh = mesh_lib.make_mesh(MeshConfig(data=data, model=model))
    split = jax.device_put(
        table, mesh_lib.shardings(mesh, {"item_embedding": table})["item_embedding"]
    )
    how = {"mesh": mesh, "num_items": ITEMS, "chunk": chunk}
    scores, ids = jax.jit(lambda x, t: sharded.top_k(x, t, 6, **how))(x, split)
    expected_scores, expected_ids = retrieval.top_k(x, table[: ITEMS + 1], 6)
    np.testing.assert_array_equal(ids, expected_ids)
    np.testing.assert_allclose(scores, expected_scores, rtol=1e-6)
    ranks = jax.jit(lambda x, t, y: sharded.rank_of_targets(x, t, y, **how))(x, split, targets)
    np.testing.assert_array_equal(ranks, retrieval.rank_of_targets(x, table[: ITEMS + 1], targets))


@pytest.mark.parametrize(("data", "model", "chunk"), [(1, 8, 3), (2, 4, 16384)])
def test_excluded_and_own_items_lie_on_any_device(catalog, data, model, chunk):
    x, table, targets = catalog
    mesh = mesh_lib.make_mesh(MeshConfig(data=data, model=model))
    rng = np.random.default_rng(2)
    ids = np.stack([rng.permutation(np.arange(1, ITEMS + 1))[:6] for _ in targets])
    own = retrieval.Own(
        ids.astype(np.int32), rng.normal(size=(len(targets), 6, 2)).astype(np.float32)
    )
    asking = np.concatenate([x, rng.normal(size=(len(x), 2)).astype(np.float32)], axis=1)
    exclude = rng.integers(0, ITEMS + 1, (len(targets), 9)).astype(np.int32)
    exclude[:, 0] = targets  # a rank never leaves the target out
    how = {"mesh": mesh, "num_items": ITEMS, "chunk": chunk}
    whole = table[: ITEMS + 1]
    scores, best = sharded.top_k(asking, table, 12, exclude, own, **how)
    expected_scores, expected = retrieval.top_k(asking, whole, 12, exclude, own)
    np.testing.assert_array_equal(best, expected)
    np.testing.assert_allclose(scores, expected_scores, rtol=1e-5)
    ranks = sharded.rank_of_targets(asking, table, targets, exclude, own, **how)
    expected = retrieval.rank_of_targets(asking, whole, targets, exclude, own)
    np.testing.assert_array_equal(ranks, expected)
    assert not np.array_equal(ranks, sharded.rank_of_targets(x, table, targets, **how))


def test_vectors_are_made_of_rows_chunk_by_chunk(catalog):
    x, table, targets = catalog
    mesh = mesh_lib.make_mesh(MeshConfig(data=2, model=4))
    kernel = np.asarray(np.random.default_rng(1).normal(size=(WIDTH, WIDTH)), np.float32)
    how = {
        "mesh": mesh,
        "num_items": ITEMS,
        "chunk": 3,
        "vectors": lambda params, rows: rows @ params,
        "params": kernel,
    }
    whole = table[: ITEMS + 1] @ kernel
    _, ids = sharded.top_k(x, table, 6, **how)
    np.testing.assert_array_equal(ids, retrieval.top_k(x, whole, 6)[1])
    ranks = sharded.rank_of_targets(x, table, targets, **how)
    np.testing.assert_array_equal(ranks, retrieval.rank_of_targets(x, whole, targets))


def test_the_table_never_travels(catalog):
    x, table, _ = catalog
    big = jnp.asarray(np.tile(table, (64, 1)))
    mesh = mesh_lib.make_mesh(MeshConfig(data=1, model=8))
    split = jax.device_put(big, mesh_lib.shardings(mesh, {"item_embedding": big})["item_embedding"])
    how = {"mesh": mesh, "num_items": len(big) - 1}
    text = jax.jit(lambda x, t: sharded.top_k(x, t, 2, **how)).lower(x, split).compile().as_text()
    moved = plan.traffic(text)
    assert moved["all-gather"]["bytes"] > 0
    assert sum(row["bytes"] for row in moved.values()) < big.nbytes / 8


def test_wrong_sizes_are_refused(catalog):
    x, table, _ = catalog
    mesh = mesh_lib.make_mesh(MeshConfig(data=1, model=8))
    with pytest.raises(ValueError, match="k=30: the catalog allows 1 to 29"):
        sharded.top_k(x, table, 30, mesh=mesh, num_items=ITEMS)
    with pytest.raises(ValueError, match=r"table has 30 rows: mesh.model=8 must divide"):
        sharded.top_k(x, table[:30], 3, mesh=mesh, num_items=ITEMS)


@pytest.mark.parametrize(("data", "model", "chunk"), [(1, 8, 3), (2, 4, 1024)])
def test_the_full_softmax_and_its_gradients_are_those_of_the_whole_catalog(
    catalog, data, model, chunk
):
    _, table, _ = catalog
    rng = np.random.default_rng(2)
    x = rng.normal(size=(16, WIDTH)).astype(np.float32)
    targets = rng.integers(0, ITEMS + 1, 16).astype(np.int32)
    weights = np.where(np.arange(16) % 5 == 0, 0.0, rng.uniform(size=16)).astype(np.float32)
    mesh = mesh_lib.make_mesh(MeshConfig(data=data, model=model))

    def split(x, table, scale):
        how = {"mesh": mesh, "num_items": ITEMS, "chunk": chunk, "vocab_chunk": 3}
        return sharded.full_softmax(x, table, targets, weights, scale=scale, **how)

    def whole(x, table, scale):
        return losses.full_softmax(x, table[: ITEMS + 1], targets, weights, scale=scale)

    given = x, jnp.asarray(table), jnp.float32(0.7)
    (sums, weight), (expected, total) = jax.jit(split)(*given), whole(*given)
    np.testing.assert_allclose(sums, expected, rtol=1e-5)
    np.testing.assert_allclose(weight, total, rtol=1e-6)
    found = jax.jit(jax.grad(lambda *a: split(*a)[0], (0, 1, 2)))(*given)
    wanted = jax.grad(lambda *a: whole(*a)[0], (0, 1, 2))(*given)
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_positions_that_do_not_divide_are_refused(catalog):
    x, table, targets = catalog
    mesh = mesh_lib.make_mesh(MeshConfig(data=2, model=4))
    with pytest.raises(ValueError, match="7 positions and 32 rows: 8 devices must divide"):
        sharded.full_softmax(x[:7], table, targets[:7], np.ones(7), mesh=mesh, num_items=ITEMS)
