"""The mesh, the partition table and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from jaxrec.config import MeshConfig
from jaxrec.errors import ConfigError
from jaxrec.runtime import leaves
from jaxrec.runtime import mesh as mesh_lib
from jaxrec.types import Batch


def params(rows=16, width=4):
    return {"rows": jnp.zeros((rows, width)), "encoder": {"kernel": jnp.zeros((4, 4))}}


def has_item_rows(path):
    return path.rpartition("/")[2] == "rows"


@pytest.mark.parametrize(
    ("data", "fsdp", "model", "shape"),
    [
        (0, 1, 1, (8, 1, 1)),
        (0, 1, 4, (2, 1, 4)),
        (4, 1, 2, (4, 1, 2)),
        (2, 1, 1, (2, 1, 1)),
        (0, 2, 2, (2, 2, 2)),
        (0, 8, 1, (1, 8, 1)),
    ],
)
def test_sizes(data, fsdp, model, shape):
    mesh = mesh_lib.make_mesh(MeshConfig(data=data, fsdp=fsdp, model=model))
    assert tuple(mesh.shape.values()) == shape
    assert mesh.axis_names == ("data", "fsdp", "model")


@pytest.mark.parametrize(
    ("data", "model", "numbers"),
    [(0, 3, ("mesh.model=3", "8")), (4, 4, ("mesh.data=4", "16", "8")), (0, 16, ("16", "8"))],
)
def test_indivisible_sizes_are_refused_with_the_numbers(data, model, numbers):
    with pytest.raises(ConfigError) as error:
        mesh_lib.make_mesh(MeshConfig(data=data, model=model))
    assert all(number in str(error.value) for number in numbers)


def test_indivisible_fsdp_is_refused_with_the_numbers():
    with pytest.raises(ConfigError, match=r"mesh.fsdp=3 x mesh.model=2 = 6: .* 8"):
        mesh_lib.make_mesh(MeshConfig(fsdp=3, model=2))
    with pytest.raises(ConfigError, match=r"mesh.data=2 x mesh.fsdp=4 x mesh.model=2 = 16"):
        mesh_lib.make_mesh(MeshConfig(data=2, fsdp=4, model=2))


def test_unknown_logical_axis_raises():
    assert mesh_lib.spec("batch", None) == P(("data", "fsdp", "model"))
    assert mesh_lib.spec("items", "width") == P("model")
    with pytest.raises(ValueError, match=r"'itms'.*batch, items, width"):
        mesh_lib.spec("itms", "width")


def test_tables_and_their_optimizer_state_are_split_alike():
    mesh = mesh_lib.make_mesh(MeshConfig(data=2, model=4))
    tree = {"params": params(), "opt_state": optax.adamw(1e-3).init(params())}
    placed = leaves.flatten(mesh_lib.shardings(mesh, tree, has_item_rows))
    split = {name for name, sharding in placed.items() if sharding.spec == P("model")}
    assert split == {
        "params/rows",
        "opt_state/0/mu/rows",
        "opt_state/0/nu/rows",
    }
    assert all(placed[name].spec == P() for name in placed if name not in split)


def test_rows_that_do_not_divide_are_refused():
    mesh = mesh_lib.make_mesh(MeshConfig(data=2, model=4))
    with pytest.raises(ConfigError, match=r"mesh.model=4.*dimension 0 of rows.*15 rows"):
        mesh_lib.shardings(mesh, params(rows=15), has_item_rows)


def test_a_model_axis_that_splits_nothing_is_refused():
    mesh = mesh_lib.make_mesh(MeshConfig(data=2, model=4))
    with pytest.raises(
        ConfigError, match=r"mesh.model=4: splits nothing.*no parameter has a row per item"
    ):
        mesh_lib.shardings(mesh, {"table": jnp.zeros((16, 4))}, has_item_rows)
    one = mesh_lib.make_mesh(MeshConfig(data=8, model=1))
    assert (
        mesh_lib.shardings(one, {"table": jnp.zeros((15, 4))}, has_item_rows)["table"].spec == P()
    )


def test_a_table_of_another_rank_than_its_rule_raises():
    mesh = mesh_lib.make_mesh(MeshConfig(data=2, model=4))
    with pytest.raises(ValueError, match="rows has shape"):
        mesh_lib.shardings(mesh, {"rows": jnp.zeros((16, 2, 2))}, has_item_rows)
    per_row = mesh_lib.shardings(mesh, {"rows": jnp.zeros(16)}, has_item_rows)
    assert per_row["rows"].spec == P("model")


def test_large_dense_parameters_are_split_over_fsdp():
    mesh = mesh_lib.make_mesh(MeshConfig(data=1, fsdp=4, model=2))
    tree = {
        "rows": jnp.zeros((16, 4)),
        "layers": {"kernel": jnp.zeros((4, 64, 256)), "wide": jnp.zeros((512, 64))},
        "odd": jnp.zeros((255, 129)),
        "small": jnp.zeros((8, 8)),
    }
    placed = leaves.flatten(mesh_lib.shardings(mesh, tree, has_item_rows))
    assert placed["layers/kernel"].spec == P(None, None, "fsdp")
    assert placed["layers/wide"].spec == P("fsdp")
    assert placed["odd"].spec == P()
    assert placed["small"].spec == P()
    assert placed["rows"].spec == P("model")


def test_an_fsdp_axis_that_splits_nothing_is_refused():
    mesh = mesh_lib.make_mesh(MeshConfig(data=2, fsdp=4))
    with pytest.raises(ConfigError, match=r"mesh.fsdp=4: splits nothing"):
        mesh_lib.shardings(mesh, params(), has_item_rows)


def test_batch_is_split_over_every_axis():
    mesh = mesh_lib.make_mesh(MeshConfig(data=4, model=2))
    rows = np.arange(8, dtype=np.int32)
    batch = Batch(*(np.stack([rows, rows], 1) for _ in range(4)), rows, rows)
    placed = mesh_lib.put_batch(mesh, batch)
    for here, there in zip(batch, placed, strict=True):
        np.testing.assert_array_equal(here, there)
        assert there.sharding.shard_shape(there.shape)[0] == 1
    mesh_lib.check_batch_size(mesh, 16, "train.batch_size")
    with pytest.raises(ConfigError, match=r"train.batch_size=12.*8 devices.*data=4 x mesh.model=2"):
        mesh_lib.check_batch_size(mesh, 12, "train.batch_size")


def test_created_where_it_lives():
    mesh = mesh_lib.make_mesh(MeshConfig(data=2, model=4))

    def make():
        return {"rows": jax.random.normal(jax.random.key(0), (16, 4))}

    like = mesh_lib.abstract(mesh, make, has_item_rows)
    made = mesh_lib.create(make, like)["rows"]
    assert made.sharding.shard_shape(made.shape) == (4, 4)
    np.testing.assert_array_equal(made, make()["rows"])
