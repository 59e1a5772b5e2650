"""A split catalog against the whole one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxrec import ranking
from jaxrec.config import MeshConfig
from jaxrec.ranking import ItemIndex
from jaxrec.runtime import mesh as mesh_lib
from jaxrec.runtime import plan
from jaxrec.types import HistoryItems, ItemVectors, Queries

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


def split_index(table, mesh, num_items=ITEMS):
    """Rows split over `mesh.model`."""
    rows = jax.device_put(table, NamedSharding(mesh, PartitionSpec("model")))
    return ItemIndex(ItemVectors(rows), None, num_items, mesh=mesh)


def whole_index(table):
    return ItemIndex.of(ItemVectors(table[: ITEMS + 1]))


@pytest.mark.parametrize(("data", "model", "chunk"), [(1, 8, 3), (2, 4, 16384), (8, 1, 5)])
def test_lists_and_ranks_are_those_of_the_whole_catalog(catalog, data, model, chunk):
    x, table, targets = catalog
    mesh = mesh_lib.make_mesh(MeshConfig(data=data, model=model))
    index, queries = split_index(table, mesh), Queries(x)
    scores, ids = ranking.top_k(queries, index, 6, chunk=chunk)
    expected_scores, expected_ids = ranking.top_k(queries, whole_index(table), 6)
    np.testing.assert_array_equal(ids, expected_ids)
    np.testing.assert_allclose(scores, expected_scores, rtol=1e-6)
    ranks = ranking.rank_of_targets(queries, index, targets, chunk=chunk)
    expected = ranking.rank_of_targets(queries, whole_index(table), targets)
    np.testing.assert_array_equal(ranks, expected)


@pytest.mark.parametrize(("data", "model", "chunk"), [(1, 8, 3), (2, 4, 16384)])
def test_excluded_and_history_items_lie_on_any_device(catalog, data, model, chunk):
    x, table, targets = catalog
    mesh = mesh_lib.make_mesh(MeshConfig(data=data, model=model))
    rng = np.random.default_rng(2)
    ids = np.stack([rng.permutation(np.arange(1, ITEMS + 1))[:6] for _ in targets])
    history = HistoryItems(
        ids.astype(np.int32), rng.normal(size=(len(targets), 6, 2)).astype(np.float32)
    )
    queries = Queries(x, rng.normal(size=(len(x), 2)).astype(np.float32))
    exclude = rng.integers(0, ITEMS + 1, (len(targets), 9)).astype(np.int32)
    exclude[:, 0] = targets  # a rank never leaves the target out
    index, whole = split_index(table, mesh), whole_index(table)
    given = {"exclude": exclude, "history": history}
    scores, best = ranking.top_k(queries, index, 12, chunk=chunk, **given)
    expected_scores, expected = ranking.top_k(queries, whole, 12, **given)
    np.testing.assert_array_equal(best, expected)
    np.testing.assert_allclose(scores, expected_scores, rtol=1e-5)
    ranks = ranking.rank_of_targets(queries, index, targets, chunk=chunk, **given)
    expected = ranking.rank_of_targets(queries, whole, targets, **given)
    np.testing.assert_array_equal(ranks, expected)
    plain = ranking.rank_of_targets(Queries(x), index, targets, chunk=chunk)
    assert not np.array_equal(ranks, plain)


def test_vectors_are_made_of_rows_chunk_by_chunk(catalog):
    x, table, targets = catalog
    mesh = mesh_lib.make_mesh(MeshConfig(data=2, model=4))
    kernel = np.asarray(np.random.default_rng(1).normal(size=(WIDTH, WIDTH)), np.float32)

    def project(kernel, rows, ids):
        return ItemVectors(rows @ kernel)

    index, queries = ItemIndex(table, kernel, ITEMS, project, mesh), Queries(x)
    whole = whole_index(table @ kernel)
    _, ids = ranking.top_k(queries, index, 6, chunk=3)
    np.testing.assert_array_equal(ids, ranking.top_k(queries, whole, 6)[1])
    ranks = ranking.rank_of_targets(queries, index, targets, chunk=3)
    np.testing.assert_array_equal(ranks, ranking.rank_of_targets(queries, whole, targets))


def test_the_table_never_travels(catalog):
    x, table, _ = catalog
    big = jnp.asarray(np.tile(table, (64, 1)))
    mesh = mesh_lib.make_mesh(MeshConfig(data=1, model=8))
    index = split_index(big, mesh, len(big) - 1)
    text = ranking.top_k.lower(Queries(x), index, 2).compile().as_text()
    moved = plan.traffic(text)
    assert moved["all-gather"]["bytes"] > 0
    assert sum(row["bytes"] for row in moved.values()) < big.nbytes / 8


def test_wrong_sizes_are_refused(catalog):
    x, table, _ = catalog
    mesh = mesh_lib.make_mesh(MeshConfig(data=1, model=8))
    with pytest.raises(ValueError, match="k=30: the catalog allows 1 to 29"):
        ranking.top_k(Queries(x), split_index(table, mesh), 30)
    odd = ItemIndex(ItemVectors(table[:30]), None, ITEMS, mesh=mesh)
    with pytest.raises(ValueError, match=r"index has 30 rows: mesh.model=8 must divide"):
        ranking.top_k(Queries(x), odd, 3)


def test_hosted_vectors_are_placed_with_rows_to_spare(catalog):
    """29 items and padding on 8 devices: two rows behind the catalog are no candidates."""
    x, table, _ = catalog
    items = ItemVectors(table[: ITEMS + 1], np.arange(ITEMS + 1, dtype=np.float32))
    mesh = mesh_lib.make_mesh(MeshConfig(data=1, model=8))
    index = ItemIndex.place(items, jax.devices()[0], mesh)
    assert (index.height, index.num_items, index.shards) == (32, ITEMS, 8)
    scores, ids = ranking.top_k(Queries(x), index, 5)
    expected_scores, expected = ranking.top_k(Queries(x), ItemIndex.of(items), 5)
    np.testing.assert_array_equal(ids, expected)
    np.testing.assert_allclose(scores, expected_scores, rtol=1e-5)
