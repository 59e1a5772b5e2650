"""What a compiled function will need per device, before it runs: memory, FLOPs, traffic.

Memory is XLA's own analysis. The rest is counted from the compiled text (`hlo_cost`), loops as
often as they turn: memory traffic, FLOPs of dots, collectives with the shapes of their results, the
heaviest operations and the largest buffers. XLA's count (`cost_analysis`) stands beside it; it has
the body of a loop once.
"""

import re
from collections import Counter
from typing import NamedTuple

import jax

from jaxrec.runtime import hlo, hlo_cost
from jaxrec.types import Json

_RENAMES = {"bitcast", "copy", "copy-start", "copy-done", "reshape", "convert"}
NAMED = 8  # operations, buffers and collectives that a plan names


class Collective(NamedTuple):
    """One operation of the compiled text: kind, result bytes per device, result shapes.

    devices: how many take part in one group; 0 where the text does not say.
    """

    kind: str
    bytes: int
    shapes: tuple[tuple[int, ...], ...]
    devices: int = 0

    @property
    def sent(self) -> float:
        """Bytes that each device sends at least: a ring, or all to all."""
        others = (self.devices - 1) / self.devices if self.devices else 1.0
        if self.kind == "reduce-scatter":
            return self.bytes * (self.devices - 1 if self.devices else 1)
        return self.bytes * {"all-reduce": 2 * others, "collective-permute": 1}.get(
            self.kind, others
        )


def collectives(text: str | hlo_cost.Count) -> list[tuple[Collective, int]]:
    """Every collective of a compiled module with how often it runs.

    Those of a TPU that run beside other work are counted where they begin.
    """
    counted = hlo_cost.count(text) if isinstance(text, str) else text
    total: Counter[Collective] = Counter()
    for operation in counted.operations:
        one, body = operation.instruction, counted.module.computations[operation.computation]
        for found in _collectives(counted.module, body, one):
            total[found] += operation.times
    return list(total.items())


def _collectives(
    module: hlo.Module, body: hlo.Computation, one: hlo.Instruction
) -> list[Collective]:
    """The collectives of an instruction: itself, or those inside a fusion."""
    if one.opcode == "fusion" and (called := module.callee(one)):
        found = [
            c for each in called.instructions.values() for c in _collectives(module, called, each)
        ]
        if called.name.startswith("all-reduce-scatter"):  # a TPU's name for a reduce-scatter
            return [_collective("reduce-scatter", one.shape, c.devices) for c in found]
        return found
    kind = hlo_cost.collective_kind(one.opcode)
    if kind is None or hlo_cost.continues(body, one):
        return []
    shape = one.shape
    if one.opcode in ("all-gather-start", "collective-permute-start"):  # (operands, results, flags)
        shape = (max(shape, key=lambda array: array.logical_bytes),)
    return [_collective(kind, shape, _group(one))]


def _collective(kind: str, shape: tuple[hlo.Array, ...], devices: int) -> Collective:
    size = sum(array.logical_bytes for array in shape)
    return Collective(kind, size, tuple(array.dims for array in shape), devices)


def _group(one: hlo.Instruction) -> int:
    """Devices of a group: `replica_groups={{0,1},{2,3}}` and `[2,2]<=[4]` have 2."""
    if listed := one.field(r"replica_groups=\{\{([\d,]+)\}"):
        return listed.count(",") + 1
    if match := re.search(r"replica_groups=\[\d+,(\d+)\]", one.rest):
        return int(match[1])
    return 0


def traffic(text: str | hlo_cost.Count) -> dict[str, dict[str, int]]:
    """kind -> {count, bytes, sent}: results of collectives per device and call.

    sent: bytes that each device sends at least, see `Collective.sent`.
    """
    by_kind: dict[str, dict[str, int]] = {}
    for operation, times in collectives(text):
        row = by_kind.setdefault(operation.kind, {"count": 0, "bytes": 0, "sent": 0})
        row["count"] += times
        row["bytes"] += times * operation.bytes
        row["sent"] += int(times * operation.sent)
    return by_kind


def largest_collectives(counted: hlo_cost.Count) -> list[Json]:
    """The collectives that send most bytes per call."""
    by_bytes = sorted(collectives(counted), key=lambda entry: -entry[0].sent * entry[1])
    return [
        {
            "kind": one.kind,
            "bytes": one.bytes,
            "sent": int(one.sent),
            "times": times,
            "shapes": one.shapes,
        }
        for one, times in by_bytes[:NAMED]
    ]


def heaviest_operations(counted: hlo_cost.Count) -> list[Json]:
    """Where most memory traffic is: instructions of one traced operation and source line.

    bytes: memory traffic of all their runs; result: the largest that one of them has.
    """
    groups: dict[tuple[str, str], list[hlo_cost.Operation]] = {}
    for operation in counted.operations:
        if operation.bytes or operation.flops:
            groups.setdefault(_place(counted, operation), []).append(operation)
    total = {place: sum(one.bytes * one.times for one in group) for place, group in groups.items()}
    rows = []
    for name, source in sorted(total, key=lambda place: -total[place])[:NAMED]:
        group = groups[name, source]
        heaviest = max(group, key=lambda one: one.bytes * one.times)
        rows.append(
            {
                "operation": name,
                "source": source,
                "bytes": total[name, source],
                "flops": sum(one.flops * one.times for one in group),
                "times": sum(one.times for one in group),
                "result": ", ".join(map(str, heaviest.instruction.shape[:3])),
            }
        )
    return rows


def largest_buffers(counted: hlo_cost.Count) -> list[Json]:
    """The largest results in main memory, equal ones together; bytes of one, with padding.

    copies: instructions that have such a result, not all alive at once.
    """
    found: Counter[tuple[int, str, str, str]] = Counter()
    for operation in counted.operations:
        one = operation.instruction
        if one.opcode in hlo_cost.FREE or one.opcode.endswith(("-start", "-update")):
            continue
        for array in one.shape:
            if array.space == 0 and array.bytes:
                found[(array.bytes, str(array), *_place(counted, operation))] += 1
    return [
        {
            "bytes": size,
            "padding": 1 - hlo.arrays(shape)[0].logical_bytes / size,
            "shape": shape,
            "operation": name,
            "source": source,
            "copies": found[size, shape, name, source],
        }
        for size, shape, name, source in sorted(found, reverse=True)[:NAMED]
    ]


def _place(counted: hlo_cost.Count, operation: hlo_cost.Operation) -> tuple[str, str]:
    """(traced operation, source line); the compiler's own copies are named by what they copy."""
    one = operation.instruction
    if (name := hlo.op_name(one)) or not one.operands:
        return name or one.opcode, counted.module.source(one)
    body = counted.module.computations[operation.computation]
    first = body.instructions.get(one.operands[0])
    while first is not None and not hlo.op_name(first) and first.opcode in _RENAMES:
        first = body.instructions.get(first.operands[0])
    if first is None or not hlo.op_name(first):
        return one.opcode, ""
    return f"{one.opcode} of {hlo.op_name(first)}", counted.module.source(first)


def memory(compiled: jax.stages.Compiled) -> dict[str, int]:
    """Bytes per device: arguments, results (without those that reuse arguments), temporaries."""
    analysis = compiled.memory_analysis()
    assert analysis is not None
    sizes = {
        "arguments": int(analysis.argument_size_in_bytes),
        "results": int(analysis.output_size_in_bytes - analysis.alias_size_in_bytes),
        "temporaries": int(analysis.temp_size_in_bytes),
        "program": int(analysis.generated_code_size_in_bytes),
    }
    return {**sizes, "total": sum(sizes.values())}


def counts(counted: hlo_cost.Count) -> Json:
    """FLOPs, memory traffic and collectives of one call, per device."""
    return {
        "dot_flops": counted.flops,
        "memory_traffic": counted.bytes,
        "collectives": traffic(counted),
    }


def describe(compiled: jax.stages.Compiled) -> Json:
    """JSON value of a compiled function, per device and call.

    dot_flops, memory_traffic: see `hlo_cost`. xla_flops, xla_bytes_accessed: XLA's count, the body
    of a loop once. assumed: what the compiled text did not say. cheapest_branches: the counts of a
    program with conditionals when they take their cheapest branches, otherwise None.
    """
    cost = compiled.cost_analysis() or {}
    text = compiled.as_text()
    assert text is not None
    counted = hlo_cost.count(text)
    runs = {one.instruction.opcode for one in counted.operations}
    cheapest = counts(hlo_cost.count(text, cheapest=True)) if "conditional" in runs else None
    return {
        "memory": memory(compiled),
        **counts(counted),
        "cheapest_branches": cheapest,
        "xla_flops": float(cost.get("flops", 0.0)),
        "xla_bytes_accessed": float(cost.get("bytes accessed", 0.0)),
        "largest_collectives": largest_collectives(counted),
        "heaviest_operations": heaviest_operations(counted),
        "largest_buffers": largest_buffers(counted),
        "assumed": counted.assumed,
    }


def lines(plan: Json) -> list[str]:
    """`describe`'s value as lines of text."""
    size = plan["memory"]
    text = [
        f"memory per device: {size['total'] / 2**20:,.1f} MiB ("
        + ", ".join(f"{k} {v / 2**20:,.1f}" for k, v in size.items() if k != "total")
        + ")",
        f"FLOPs per device of dots and kernels: {plan['dot_flops']:.4g}",
        f"memory traffic per device: {plan['memory_traffic'] / 2**20:,.1f} MiB",
    ]
    if not plan["collectives"]:
        text.append("collectives: none")
    for kind, row in sorted(plan["collectives"].items()):
        text.append(f"{kind}: {row['count']}, {row['bytes'] / 2**20:,.2f} MiB")
    return text + [f"assumed: {line}" for line in plan["assumed"]]


def named_lines(plan: Json) -> list[str]:
    """The heaviest operations and the largest buffers of `describe`'s value."""
    text = ["heaviest operations, GB of memory traffic per call:"]
    for row in plan["heaviest_operations"]:
        text.append(
            f"    {row['bytes'] / 1e9:.2f}  {row['operation']}  {row['source']}  {row['result']}"
        )
    text.append("largest buffers, GB:")
    for row in plan["largest_buffers"]:
        text.append(
            f"    {row['bytes'] / 1e9:.2f} ({row['padding']:.0%} padding)  {row['shape']}"
            f"  {row['operation']}  {row['source']}"
        )
    return text
