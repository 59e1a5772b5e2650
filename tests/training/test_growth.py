"""A run whose data was appended to: old rows stay, new ones come, everything else continues."""

import jax
import numpy as np
import pytest

from jaxrec.config import Config, MeshConfig, TrainConfig
from jaxrec.errors import StructureError
from jaxrec.model.parameters import has_item_rows
from jaxrec.runtime import checkpoint
from jaxrec.runtime import mesh as mesh_lib
from jaxrec.training import growth, step
from jaxrec.training.task import Task


def states(rows, update, mesh, seed=0, other=0):
    """Shapes of a state with `rows` item rows, and what makes it."""

    def init(key):
        table, kernel = jax.random.split(key)
        return {
            "item": {"embedding": jax.random.normal(table, (rows, 4))},
            "encoder": {"kernel": jax.random.normal(kernel, (4, other or rows))},
        }

    config = Config(seed=seed, train=TrainConfig(table_update=update, weight_decay=0.1))
    parts = step.assemble(config, Task(init, None, lambda *_: None), mesh)

    def trees():
        state = parts.new()
        return {"params": state.params, "opt_state": state.opt_state}

    return trees, mesh_lib.abstract(mesh, trees, has_item_rows)


@pytest.mark.parametrize("update", ["adamw", "adagrad", "adam"])
@pytest.mark.parametrize("split", [1, 4])
def test_rows_are_added_behind(update, split, tmp_path):
    mesh = mesh_lib.make_mesh(MeshConfig(model=split), jax.devices()[:split])
    one = mesh_lib.make_mesh(MeshConfig(), jax.devices()[:1])
    # 6 rows divide by 1 alone, 8 by all
    old_trees, like = states(6, update, one, seed=1)
    old = jax.tree.map(lambda x: x + 3, mesh_lib.create(old_trees, like))
    checkpoint.save(tmp_path, 5, old, {})
    trees, wanted = states(8, update, mesh)
    # a kernel that depends on the number of items has no row for each: nothing to add to
    with pytest.raises(StructureError, match="kernel"):
        checkpoint.restore(
            tmp_path, 5, wanted, lambda stored, like: growth.as_stored(stored, like, {6}, mesh)
        )
    trees, wanted = states(8, update, mesh, other=6)
    with pytest.raises(StructureError, match="item/embedding"):
        checkpoint.restore(tmp_path, 5, wanted)
    with pytest.raises(StructureError, match="item/embedding"):  # not a height of the data before
        checkpoint.restore(
            tmp_path, 5, wanted, lambda stored, like: growth.as_stored(stored, like, {7}, mesh)
        )
    found = checkpoint.restore(
        tmp_path, 5, wanted, lambda stored, like: growth.as_stored(stored, like, {6}, mesh)
    ).trees
    assert growth.new_rows(found, wanted) == 2
    grown = growth.grow(found, trees, wanted)
    fresh = trees()
    flat = [jax.tree.leaves(tree) for tree in (old, grown, fresh, wanted)]
    tables = 0
    for before, after, new, shape in zip(*flat, strict=True):
        assert after.shape == shape.shape
        assert after.sharding == shape.sharding
        if before.shape == after.shape:
            np.testing.assert_array_equal(after, before)
            continue
        tables += 1
        np.testing.assert_array_equal(after[:6], before)
        np.testing.assert_array_equal(after[6:], new[6:])
    assert tables == (2 if update == "adagrad" else 3)
    assert np.abs(grown["params"]["item"]["embedding"][6:]).min() > 0
    assert growth.new_rows(grown, wanted) == 0
