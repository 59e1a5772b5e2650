"""Initial parameters of which some are known."""

import jax
import numpy as np
import pytest

from jaxrec.config import MeshConfig
from jaxrec.items import text_table
from jaxrec.model.initial import starting_from
from jaxrec.model.parameters import has_item_rows
from jaxrec.runtime import mesh as mesh_lib
from tests.items.text_items import VECTORS, build


def test_given_leaves_arrive_on_every_device():
    mesh = mesh_lib.make_mesh(MeshConfig(data=8))
    init = starting_from(build().init, text_table.leaves(VECTORS))
    like = mesh_lib.abstract(mesh, lambda: init(jax.random.key(0)), has_item_rows)
    placed = mesh_lib.create(lambda: init(jax.random.key(0)), like)
    assert len(placed["item"]["embedding"].addressable_shards) == 8
    for shard in placed["item"]["embedding"].addressable_shards:
        np.testing.assert_array_equal(shard.data[7], VECTORS[7])


def test_given_leaves_that_do_not_fit_are_all_listed():
    known = {"item/embedding": VECTORS[:3], "nothing": VECTORS}
    with pytest.raises(ValueError, match="nothing: not in the model") as error:
        starting_from(build().init, known)(jax.random.key(0))
    assert "item/embedding has shape (3, 6), the model's is (12, 6)" in str(error.value)
