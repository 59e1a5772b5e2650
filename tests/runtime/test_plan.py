"""What is read from a compiled text, against functions whose traffic is known."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from jaxrec.config import MeshConfig
from jaxrec.runtime import mesh as mesh_lib
from jaxrec.runtime import plan


def compiled(function, specs, out, *shapes):
    mesh = mesh_lib.make_mesh(MeshConfig(data=8))
    mapped = jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=out, check_vma=False)
    given = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return jax.jit(mapped).lower(*given).compile()


def test_collectives_by_kind_and_bytes():
    def both(x, y):
        return jax.lax.all_gather(x, "data", tiled=True), jax.lax.psum(y, "data")

    found = plan.describe(compiled(both, (P("data"), P("data")), (P(), P()), (64, 4), (8, 16)))
    assert found["collectives"] == {
        "all-gather": {"count": 1, "bytes": 64 * 4 * 4},
        "all-reduce": {"count": 1, "bytes": 16 * 4},
    }
    assert found["memory"]["arguments"] == 8 * 4 * 4 + 16 * 4
    text = "\n".join(plan.lines(found))
    assert "all-gather: 1, 0.00 MiB" in text


def test_a_loop_counts_as_often_as_it_turns():
    def turns(x):
        return jax.lax.fori_loop(0, 5, lambda _, x: jax.lax.psum(jnp.sin(x), "data"), x)

    text = compiled(turns, P("data"), P("data"), (8, 16)).as_text()
    assert plan.traffic(text)["all-reduce"] == {"count": 5, "bytes": 5 * 16 * 4}


def test_nothing_travels():
    found = plan.describe(compiled(jnp.sin, P("data"), P("data"), (8, 16)))
    assert found["collectives"] == {}
    assert "collectives: none" in plan.lines(found)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            "  %ag = (f32[2,4]{1,0}, f32[16,4]{1,0}) all-gather-start(f32[2,4]{1,0} %p), dims={0}",
            plan.Collective("all-gather", 256, ((16, 4),)),
        ),
        (
            "  ROOT %ar = (bf16[8]{0}, s32[]) all-reduce(bf16[8]{0} %a, s32[] %b), to_apply=%add",
            plan.Collective("all-reduce", 20, ((8,), ())),
        ),
        (
            "  %rs = f32[4]{0:T(128)} reduce-scatter(f32[32]{0} %a), dimensions={0}",
            plan.Collective("reduce-scatter", 16, ((4,),)),
        ),
    ],
)
def test_forms_of_other_compilers(line, expected):
    text = f"HloModule m\n\nENTRY %main (p: f32[2,4]) -> f32[2] {{\n{line}\n}}\n"
    assert plan.collectives(text) == [(expected, 1)]


def test_done_is_not_counted_again():
    line = "  %d = f32[16,4]{1,0} all-gather-done((f32[2,4], f32[16,4]) %ag)"
    assert plan.collectives(f"ENTRY %main () -> f32[] {{\n{line}\n}}\n") == []
