"""What a compiled function will need per device, before it runs: memory, FLOPs, traffic.

Read from XLA's own analyses (`memory_analysis`, `cost_analysis`) and from the compiled text, which
has every collective with the shape of its result. Collectives in a loop are counted once per
iteration where XLA knows the trip count.
"""

import math
import re
from collections import Counter
from typing import NamedTuple

import jax

from jaxrec.types import Json

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
BITS = {
    **{"pred": 8, "bf16": 16, "f16": 16, "f32": 32, "f64": 64},
    **{f"{sign}{n}": n for sign in "su" for n in (2, 4, 8, 16, 32, 64)},
}

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
_OPERATION = re.compile(
    rf"= (?P<shape>\(.*?\)|\S+) (?P<kind>{'|'.join(KINDS)})(?P<start>-start)?\("
)
_CALLED = re.compile(r"(?:body|calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIP_COUNT = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")


class Collective(NamedTuple):
    """One operation of the compiled text: kind, result bytes per device, result shapes."""

    kind: str
    bytes: int
    shapes: tuple[tuple[int, ...], ...]


def collectives(text: str) -> list[tuple[Collective, int]]:
    """Every collective of a compiled module with how often it runs.

    A conditional counts all of its branches.
    """
    operations: dict[str, list[Collective]] = {}  # by computation
    calls: dict[str, list[tuple[str, int]]] = {}
    entry, current = "", ""
    for line in text.splitlines():
        if match := _COMPUTATION.match(line):
            current = match[2]
            operations[current], calls[current] = [], []
            entry = current if match[1] else entry
            continue
        if not current:
            continue
        if match := _OPERATION.search(line):
            operation = _collective(match["kind"], match["shape"], bool(match["start"]))
            operations[current].append(operation)
            continue
        trips = _TRIP_COUNT.search(line)
        names = _CALLED.findall(line)
        if match := _BRANCHES.search(line):
            names += [name.strip().lstrip("%") for name in match[1].split(",")]
        calls[current] += [(name, int(trips[1]) if trips else 1) for name in names]
    total: Counter[Collective] = Counter()

    def walk(name: str, times: int) -> None:
        for operation in operations.get(name, ()):
            total[operation] += times
        for called, trips in calls.get(name, ()):
            walk(called, times * trips)

    walk(entry, 1)
    return list(total.items())


def _collective(kind: str, shape: str, start: bool) -> Collective:
    arrays = [
        (name, tuple(int(n) for n in dims.split(",") if n)) for name, dims in _ARRAY.findall(shape)
    ]
    arrays = [(name, dims) for name, dims in arrays if name in BITS]
    if start and kind in ("all-gather", "collective-permute"):  # (operands, results, flags)
        arrays = [max(arrays, key=lambda a: math.prod(a[1]))]
    size = sum(BITS[name] * math.prod(dims) // 8 for name, dims in arrays)
    return Collective(kind, size, tuple(dims for _, dims in arrays))


def traffic(text: str) -> dict[str, dict[str, int]]:
    """kind -> {count, bytes}: results of collectives per device and call."""
    by_kind: dict[str, dict[str, int]] = {}
    for operation, times in collectives(text):
        row = by_kind.setdefault(operation.kind, {"count": 0, "bytes": 0})
        row["count"] += times
        row["bytes"] += times * operation.bytes
    return by_kind


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


def describe(compiled: jax.stages.Compiled) -> Json:
    """JSON value of a compiled function: `memory`, `traffic`, XLA's FLOPs and bytes accessed.

    XLA counts the body of a loop once, whatever its trip count.
    """
    cost = compiled.cost_analysis() or {}
    text = compiled.as_text()
    assert text is not None
    return {
        "memory": memory(compiled),
        "xla_flops": float(cost.get("flops", 0.0)),
        "xla_bytes_accessed": float(cost.get("bytes accessed", 0.0)),
        "collectives": traffic(text),
    }


def lines(plan: Json) -> list[str]:
    """`describe`'s value as lines of text."""
    size = plan["memory"]
    text = [
        f"memory per device: {size['total'] / 2**20:,.1f} MiB ("
        + ", ".join(f"{k} {v / 2**20:,.1f}" for k, v in size.items() if k != "total")
        + ")",
        f"FLOPs per device by XLA's count: {plan['xla_flops']:.4g}",
    ]
    if not plan["collectives"]:
        text.append("collectives: none")
    for kind, row in sorted(plan["collectives"].items()):
        text.append(f"{kind}: {row['count']}, {row['bytes'] / 2**20:,.2f} MiB")
    return text
