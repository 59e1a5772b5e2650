"""The full softmax over a split catalog against the whole one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.config import MeshConfig
from jaxrec.objective import full_softmax, sharded_softmax
from jaxrec.runtime import mesh as mesh_lib
from jaxrec.types import ItemVectors
from tests.ranking.test_split_index import ITEMS, WIDTH
from tests.ranking.test_split_index import catalog as catalog


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
        options = {"mesh": mesh, "num_items": ITEMS, "chunk": chunk, "vocab_chunk": 3}
        items = ItemVectors(table)
        return sharded_softmax.full_softmax(x, items, targets, weights, scale=scale, **options)

    def whole(x, table, scale):
        return full_softmax.full_softmax(
            x, ItemVectors(table[: ITEMS + 1]), targets, weights, scale=scale
        )

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
        sharded_softmax.full_softmax(
            x[:7], ItemVectors(table), targets[:7], np.ones(7), mesh=mesh, num_items=ITEMS
        )
