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
        "all-gather": {"count": 1, "bytes": 64 * 4 * 4, "sent": 64 * 4 * 4 * 7 // 8},
        "all-reduce": {"count": 1, "bytes": 16 * 4, "sent": 2 * 16 * 4 * 7 // 8},
    }
    assert found["memory"]["arguments"] == 8 * 4 * 4 + 16 * 4
    text = "\n".join(plan.lines(found))
    assert "all-gather: 1, 0.00 MiB" in text


def test_a_loop_counts_as_often_as_it_turns():
    def turns(x):
        return jax.lax.fori_loop(0, 5, lambda _, x: jax.lax.psum(jnp.sin(x), "data"), x)

    text = compiled(turns, P("data"), P("data"), (8, 16)).as_text()
    row = plan.traffic(text)["all-reduce"]
    assert (row["count"], row["bytes"]) == (5, 5 * 16 * 4)


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


@pytest.mark.parametrize(
    ("kind", "groups", "sent"),
    [
        ("all-gather", "replica_groups={{0,1,2,3},{4,5,6,7}}", 96),
        ("all-reduce", "replica_groups=[2,4]<=[8]", 192),
        ("reduce-scatter", "replica_groups=[2,4]<=[8]", 3 * 128),
        ("all-to-all", "replica_groups=[2,4]<=[4,2]T(1,0)", 96),
        ("collective-permute", "source_target_pairs={{0,1},{1,0}}", 128),
        ("all-reduce", "replica_groups={}", 256),
    ],
)
def test_bytes_that_a_device_sends(kind, groups, sent):
    line = f"  ROOT %x = f32[32]{{0}} {kind}(%a), {groups}"
    assert plan.traffic(f"ENTRY %main () -> f32[] {{\n{line}\n}}\n")[kind]["sent"] == sent


BESIDE = """%begin (p: f32[2]) -> (f32[2], f32[8]) {
  %p = f32[2]{0} parameter(0)
  %g = f32[8]{0} all-gather(%p), replica_groups=[1,4]<=[4], frontend_attributes={chain_id="0"}
  ROOT %s = (f32[2]{0}, f32[8]{0}) custom-call(%g), custom_call_target="AsyncCollectiveStart"
}

%end (q: f32[2], r: f32[8]) -> f32[8] {
  %q = f32[2]{0} parameter(0)
  %r = f32[8]{0} parameter(1)
  %h = f32[8]{0} all-gather(%q), replica_groups=[1,4]<=[4], frontend_attributes={chain_id="0"}
  ROOT %d = f32[8]{0} custom-call(%q, %r, %h), custom_call_target="AsyncCollectiveDone"
}

%all-reduce-scatter.1 (t: f32[8]) -> f32[2] {
  %t = f32[8]{0} parameter(0)
  %u = f32[8]{0} all-reduce(%t), replica_groups=[1,4]<=[4], to_apply=%add
  ROOT %v = f32[2]{0} dynamic-slice(%u, %i), dynamic_slice_sizes={2}
}

ENTRY %main (x: f32[2]) -> f32[2] {
  %x = f32[2]{0} parameter(0)
  %a = (f32[2]{0}, f32[8]{0}) fusion(%x), kind=kCustom, calls=%begin
  %b = f32[2]{0} get-tuple-element(%a), index=0
  %c = f32[8]{0} get-tuple-element(%a), index=1
  %e = f32[8]{0} fusion(%b, %c), kind=kCustom, calls=%end
  ROOT %f = f32[2]{0} fusion(%e), kind=kCustom, calls=%all-reduce-scatter.1
}
"""


def test_collectives_of_a_tpu_that_run_beside_other_work():
    assert plan.collectives(BESIDE) == [
        (plan.Collective("all-gather", 32, ((8,),), 4), 1),
        (plan.Collective("reduce-scatter", 8, ((2,),), 4), 1),
    ]


def test_a_plan_names_where_traffic_and_memory_are():
    def step(x, w):
        return jax.lax.fori_loop(0, 5, lambda _, x: jnp.tanh(x @ w), x)

    given = [jax.ShapeDtypeStruct((64, 64), jnp.float32)] * 2
    found = plan.describe(jax.jit(step).lower(*given).compile())
    assert found["dot_flops"] == 5 * 2 * 64**3
    heaviest = found["heaviest_operations"][0]
    assert heaviest["times"] >= 5
    assert heaviest["source"].startswith("runtime/test_plan.py:")
    assert sum(row["bytes"] for row in found["heaviest_operations"]) <= found["memory_traffic"]
    assert found["largest_buffers"][0]["shape"] == "f32[64,64]"
    assert any("f32[64,64]" in line for line in plan.named_lines(found))
