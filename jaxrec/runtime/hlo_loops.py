"""How often each computation of a compiled program runs.

XLA writes `known_trip_count` behind a loop on some platforms; the TPU's compiler does not. There
the count is read from the loop: a counter that starts at a constant, grows by a constant, and is
compared with a constant.
"""

import functools
import math
from collections import Counter
from collections.abc import Callable, Mapping
from typing import NamedTuple

from jaxrec.runtime import hlo

_SAME = {"copy", "bitcast", "convert", "reshape", "copy-done", "copy-start", "broadcast"}
_FLIPPED = {"LT": "GT", "GT": "LT", "LE": "GE", "GE": "LE", "NE": "NE"}


class Linear(NamedTuple):
    """An integer: `offset` plus an element of the loop's carry; element None: a constant."""

    element: int | None
    offset: int


class Executions(NamedTuple):
    """times: runs of each computation per call of the program; assumed: what was not known."""

    times: Counter[str]
    assumed: list[str]


def executions(
    module: hlo.Module, cost: Callable[[str], float], cheapest: bool = False
) -> Executions:
    """Runs of every computation that is called; those of fusions and reducers are not here.

    cost: of one run of a computation, without what it calls. A conditional counts its costliest
    branch, or its cheapest. A loop of unknown length counts as often as covers the arrays that it
    cuts (see `cover`), or once. Both are named in `assumed`.
    """
    known: dict[str, Counter[str]] = {}
    assumed: list[str] = []

    def total(name: str) -> Counter[str]:
        if name not in known:
            known[name] = Counter({name: 1})
            for instruction in module.computations[name].instructions.values():
                known[name].update(inside(module.computations[name], instruction))
        return known[name]

    def scaled(name: str, times: int) -> Counter[str]:
        found = total(name) if name in module.computations else Counter()
        return Counter({one: count * times for one, count in found.items()})

    def inside(computation: hlo.Computation, instruction: hlo.Instruction) -> Counter[str]:
        called = instruction.called()
        if instruction.opcode == "while":
            turns = trips(module, computation, instruction)
            if turns is None:
                turns = cover(module, instruction) or 1
                assumed.append(f"a loop of unknown length, {turns} turns: {_label(instruction)}")
            return scaled(called["body"], turns) + scaled(called["condition"], turns + 1)
        if instruction.opcode == "conditional":
            branches = [scaled(name, 1) for name in instruction.branches()]
            which, pick = ("cheapest", min) if cheapest else ("costliest", max)
            assumed.append(f"the {which} of {len(branches)} branches: {_label(instruction)}")
            return pick(branches, key=lambda b: sum(n * cost(one) for one, n in b.items()))
        if instruction.opcode in ("call", "async-start"):
            return scaled(called.get("calls") or called.get("to_apply", ""), 1)
        return Counter()

    return Executions(total(module.entry) if module.entry else Counter(), assumed)


def trips(module: hlo.Module, parent: hlo.Computation, loop: hlo.Instruction) -> int | None:
    """How often the body of a loop runs; None where the text does not say."""
    if stated := loop.field(r'"known_trip_count":\{"n":"(\d+)"'):
        return int(stated)
    called = loop.called()
    condition, body = module.computations[called["condition"]], module.computations[called["body"]]
    compared = _comparison(module, condition, condition.root, {})
    carry = parent.instructions.get(loop.operands[0]) if loop.operands else None
    result = body.instructions.get(body.root)
    if compared is None or carry is None or result is None:
        return None
    if carry.opcode != "tuple" or result.opcode != "tuple":
        return None

    def first(value: Linear) -> int | None:
        if value.element is None:
            return value.offset
        start = _linear(module, parent, carry.operands[value.element], {})
        return None if start is None or start.element is not None else start.offset + value.offset

    def growth(value: Linear) -> int | None:
        if value.element is None:
            return 0
        after = _linear(module, body, result.operands[value.element], {})
        return after.offset if after is not None and after.element == value.element else None

    left, right, direction = compared
    numbers = (first(left), first(right), growth(left), growth(right))
    if any(number is None for number in numbers):
        return None
    start, limit, step, other = (number or 0 for number in numbers)
    if other and not step:
        start, limit, step, other, direction = limit, start, other, step, _FLIPPED[direction]
    return None if other or not step else _turns(start, limit, step, direction)


def cover(module: hlo.Module, loop: hlo.Instruction) -> int:
    """Turns after which a loop has used up one of the arrays that its counter slices; 0: none.

    It is the longest that a loop over parts of an array can take, such as one over the chunks of
    a batch that are in use.
    """
    body = module.computations[loop.called()["body"]]
    result = body.instructions.get(body.root)
    if result is None or result.opcode != "tuple":
        return 0
    counters = set()
    for index, name in enumerate(result.operands):
        after = _linear(module, body, name, {})
        if after is not None and after.element == index and after.offset:
            counters.add(index)
    return min(_cover(module, body, counters, frozenset()), default=0)


def _cover(
    module: hlo.Module, computation: hlo.Computation, counters: set[int], bound: frozenset[str]
) -> set[int]:
    """Parts of every array that is cut; bound: parameters of a fusion that a counter decides."""

    @functools.cache
    def counted(name: str) -> bool:
        one = computation.instructions.get(name)
        if one is None or name in bound:
            return name in bound
        if one.opcode == "get-tuple-element":
            return int(one.field(r"index=(\d+)") or -1) in counters
        scalar = len(one.shape) == 1 and math.prod(one.shape[0].dims) == 1
        return scalar and any(map(counted, one.operands))

    found = set()
    for one in computation.instructions.values():
        if one.opcode == "fusion" and (inner := module.callee(one)):
            decided = [n for n, operand in enumerate(one.operands) if counted(operand)]
            names = frozenset(inner.parameters[number] for number in decided)
            found |= _cover(module, inner, set(), names) if names else set()
        if one.opcode in ("dynamic-slice", "dynamic-update-slice"):
            whole = computation.arrays(one.operands[0])
            updates = one.opcode == "dynamic-update-slice"
            part = computation.arrays(one.operands[1]) if updates else one.shape
            for axis, start in enumerate(one.operands[2 if updates else 1 :]):
                if whole and part and counted(start):
                    found.add(-(-whole[0].dims[axis] // part[0].dims[axis]))
    return found - {1}


def _turns(start: int, limit: int, step: int, direction: str) -> int | None:
    """Turns of `for (i = start; i DIRECTION limit; i += step)`."""
    if direction in ("LE", "GE"):
        limit += 1 if direction == "LE" else -1
    if (direction in ("LT", "LE")) != (step > 0) and direction != "NE":
        return None
    return max(0, math.ceil((limit - start) / step))


def _comparison(
    module: hlo.Module,
    computation: hlo.Computation,
    name: str,
    bound: Mapping[str, Linear | None],
) -> tuple[Linear, Linear, str] | None:
    """Both sides and the direction of a loop's condition."""
    one = computation.instructions.get(name)
    if one is None:
        return None
    if one.opcode in _SAME:
        return _comparison(module, computation, one.operands[0], bound)
    if one.opcode == "fusion" and (inner := module.callee(one)):
        return _comparison(module, inner, inner.root, _bind(module, computation, one, bound))
    direction = one.field(r"direction=(\w+)")
    if one.opcode != "compare" or direction not in _FLIPPED:
        return None
    left, right = (_linear(module, computation, side, bound) for side in one.operands)
    return (left, right, direction) if left is not None and right is not None else None


def _linear(
    module: hlo.Module,
    computation: hlo.Computation,
    name: str,
    bound: Mapping[str, Linear | None],
) -> Linear | None:
    """An integer of a computation whose parameter is the carry; bound: parameters of a fusion."""
    one = computation.instructions.get(name)
    if name in bound or one is None:
        return bound.get(name)
    if one.opcode == "constant":
        text = one.arguments.strip("{} ")
        return Linear(None, int(text)) if text.lstrip("-").isdigit() else None
    if one.opcode == "get-tuple-element":
        source = computation.instructions.get(one.operands[0])
        index = int(one.field(r"index=(\d+)") or 0)
        if source is not None and source.opcode == "tuple":
            return _linear(module, computation, source.operands[index], bound)
        return Linear(index, 0) if source is not None and source.opcode == "parameter" else None
    if one.opcode in _SAME:
        return _linear(module, computation, one.operands[0], bound)
    if one.opcode == "fusion" and (inner := module.callee(one)):
        return _linear(module, inner, inner.root, _bind(module, computation, one, bound))
    if one.opcode in ("add", "subtract"):
        left, right = (_linear(module, computation, side, bound) for side in one.operands)
        if left is None or right is None:
            return None
        if one.opcode == "add" and left.element is None:
            left, right = right, left
        if right.element is None:
            sign = 1 if one.opcode == "add" else -1
            return Linear(left.element, left.offset + sign * right.offset)
    return None


def _bind(
    module: hlo.Module,
    computation: hlo.Computation,
    fusion: hlo.Instruction,
    bound: Mapping[str, Linear | None],
) -> dict[str, Linear | None]:
    """Parameters of a fusion as what they stand for."""
    inner = module.callee(fusion)
    assert inner is not None
    return {
        inner.parameters[number]: _linear(module, computation, operand, bound)
        for number, operand in enumerate(fusion.operands)
    }


def _label(instruction: hlo.Instruction) -> str:
    return hlo.op_name(instruction) or instruction.name
