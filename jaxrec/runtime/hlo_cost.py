"""Memory traffic and FLOPs of a compiled program, loops counted as often as they turn.

Bytes are those that the main memory (HBM) of one device reads and writes: every instruction reads
its operands and writes its result, with the padding of tiles. Free are arrays that the compiler
keeps in fast memory, and instructions that only rename. A fusion reads its operands and writes its
results, nothing between. Where only a part is touched, the part counts: slices, gathered rows, the
update of an array in place. These are the rules of XLA's own analysis, which counts the body of a
loop once and fast memory like any other.

FLOPs are those of dots and convolutions, two per multiply-add, and what custom kernels declare;
elementwise work is not counted. A custom kernel counts the bytes of its `cost_estimate`; one
without counts its operands and results.
"""

import functools
import math
import re
from collections.abc import Callable
from typing import NamedTuple

from jaxrec.runtime import hlo, hlo_loops

FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all"),
    *("partition-id", "replica-id", "opt-barrier", "add-dependency", "domain"),
    *("while", "conditional", "call", "async-start", "async-update", "async-done"),
}
RENAMING = {  # custom calls that touch nothing
    *("ConcatBitcast", "AllocateBuffer", "AssumeGatherIndicesInBound"),
    *("GatherScatterIndicesBitpacked", "AsyncCollectiveStart", "AsyncCollectiveDone", "Sharding"),
}
MAPPED = {"bitcast", "reshape", "transpose", "copy", "convert"}  # an element from an element
SLICES = {"slice", "dynamic-slice", "gather"}
KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
FLOPS_PER_BYTE = 240  # balance of a TPU v5e, to say which branch of a conditional costs more


class Operation(NamedTuple):
    """An instruction that runs: bytes and FLOPs of one run, runs per call of the program."""

    instruction: hlo.Instruction
    computation: str
    times: int
    bytes: int
    flops: int


class Count(NamedTuple):
    """Operations of a program; assumed: what the text did not say and how it was counted."""

    module: hlo.Module
    operations: list[Operation]
    assumed: list[str]

    @property
    def bytes(self) -> int:
        """Memory traffic of one call, bytes per device."""
        return sum(one.times * one.bytes for one in self.operations)

    @property
    def flops(self) -> int:
        """FLOPs of dots, convolutions and custom kernels of one call, per device."""
        return sum(one.times * one.flops for one in self.operations)


def count(text: str, cheapest: bool = False) -> Count:
    """What one call of a compiled program moves and computes.

    text: `compiled.as_text()`. cheapest: conditionals count their cheapest branch instead of their
    costliest.
    """
    module = hlo.parse(text)

    @functools.cache
    def rows(name: str) -> list[tuple[hlo.Instruction, int, int]]:
        computation = module.computations[name]
        return [
            (one, memory_bytes(module, computation, one), flops(module, computation, one))
            for one in computation.instructions.values()
        ]

    def cost(name: str) -> float:
        return sum(moved + work / FLOPS_PER_BYTE for _, moved, work in rows(name))

    runs = hlo_loops.executions(module, cost, cheapest)
    operations = [
        Operation(instruction, name, times, moved, work)
        for name, times in runs.times.items()
        for instruction, moved, work in rows(name)
    ]
    kernels = {
        f"a kernel without cost_estimate counts its operands: {hlo.op_name(one.instruction)}"
        for one in operations
        if target(one.instruction) == "tpu_custom_call" and declared(one.instruction) is None
    }
    return Count(module, operations, [*runs.assumed, *sorted(kernels)])


def target(instruction: hlo.Instruction) -> str:
    """Name of a custom call; empty for other instructions."""
    if instruction.opcode != "custom-call":
        return ""
    return instruction.field(r'custom_call_target="([^"]*)"') or ""


def declared(instruction: hlo.Instruction) -> dict[str, int] | None:
    """`cost_estimate` of a custom kernel: flops, bytes_accessed, transcendentals."""
    fields = instruction.field(r'"cost_estimate":\{([^}]*)\}')
    if fields is None:
        return None
    return {name: int(value) for name, value in re.findall(r'"(\w+)":"?(\d+)', fields)}


# bytes


def memory_bytes(module: hlo.Module, computation: hlo.Computation, one: hlo.Instruction) -> int:
    """Bytes of main memory that one run of an instruction reads and writes."""
    operands = [computation.arrays(name) for name in one.operands]
    if one.opcode in FREE or one.opcode.endswith(("-done", "-update")):
        return 0
    if one.opcode == "fusion":
        return _fusion_bytes(module, computation, one)
    if one.opcode == "custom-call":
        if target(one) in RENAMING:
            return 0
        if (cost := declared(one)) is not None:
            return cost.get("bytes_accessed", 0)
    if one.opcode == "slice-start":  # (operand), result, flag
        return _main(one.shape[-2:-1]) + _main(_as_type(one.shape[-2], one.shape[:1]))
    if one.opcode in ("copy-start", "all-gather-start", "collective-permute-start"):
        return _main(one.shape)  # operand and result are in it
    if one.opcode in SLICES and one.shape:
        read = _main(_as_type(one.shape[0], operands[0]))
        return read + _main(one.shape) + sum(map(_main, operands[1:]))
    if one.opcode == "dynamic-update-slice" and operands[0]:
        written = _main(_as_type(operands[1][0], operands[0]))
        return written + _main(operands[1])
    if one.opcode == "scatter":
        updates = operands[len(operands) // 2 + 1 :]
        return 3 * sum(map(_main, updates)) + _main(operands[len(operands) // 2])
    return sum(map(_main, operands)) + _main(one.shape)


def _main(shape: tuple[hlo.Array, ...]) -> int:
    """Bytes of the arrays that lie in main memory."""
    return sum(array.bytes for array in shape if array.space == 0)


def _as_type(part: hlo.Array, whole: tuple[hlo.Array, ...]) -> tuple[hlo.Array, ...]:
    """A part of an array in that array's type and memory."""
    return (part._replace(dtype=whole[0].dtype, space=whole[0].space),) if whole else (part,)


def _fusion_bytes(module: hlo.Module, computation: hlo.Computation, one: hlo.Instruction) -> int:
    body = module.callee(one)
    if body is None:
        return sum(_main(computation.arrays(name)) for name in one.operands) + _main(one.shape)
    total = 0
    for number, operand in enumerate(one.operands):
        for array in computation.arrays(operand)[:1]:
            if array.space == 0 and number in body.parameters:
                total += _read(module, body, body.parameters[number], array)
    root = body.instructions[body.root]
    if root.opcode == "tuple" and len(root.operands) == len(one.shape):
        return total + sum(map(functools.partial(_written, module, body), root.operands, one.shape))
    if len(one.shape) == 1:
        return total + _written(module, body, body.root, one.shape[0])
    if target(root) == "AsyncCollectiveStart":
        return total + sum(_main(body.arrays(name)) for name in root.operands)
    return total + _main(one.shape)


def _read(
    module: hlo.Module,
    body: hlo.Computation,
    name: str,
    array: hlo.Array,
    changed: bool = False,
    result: Callable[[bool], int] | None = None,
) -> int:
    """Bytes that a fusion reads of a parameter: at most all of it, or the parts it takes.

    name: the parameter, or what is made of it element by element; changed: not only renamed.
    result: bytes read by the users of the result of `body`, for a fusion inside a fusion.
    """
    whole = array.bytes if changed else 0  # what is only renamed is not read
    total = 0
    if name == body.root:
        total = result(changed) if result is not None else whole
    for user, position in body.users.get(name, ()):
        if continues(body, user):
            continue
        follow = functools.partial(_read, module, body, user.name, array, result=result)
        if user.opcode in MAPPED or target(user) in RENAMING:
            total += follow(changed or user.opcode in MAPPED - {"bitcast"})
        elif user.opcode in SLICES and position == 0:
            total += user.shape[0]._replace(dtype=array.dtype).bytes
        elif user.opcode == "dynamic-update-slice" and position == 0:  # written in place
            total += follow(changed)
        elif user.opcode == "scatter" and position < len(user.operands) // 2:
            updates = body.arrays(user.operands[len(user.operands) // 2 + 1 + position])
            total += sum(a.bytes for a in updates) + follow(changed)
        elif user.opcode == "fusion" and (called := module.callee(user)):
            total += _read(module, called, called.parameters[position], array, changed, follow)
        elif user.opcode == "tuple":
            total += whole
        else:
            return array.bytes
        if total >= array.bytes:
            return array.bytes
    return min(total, array.bytes)


def _written(module: hlo.Module, body: hlo.Computation, name: str, array: hlo.Array) -> int:
    """Bytes that a fusion writes of a result; array: as the fusion's own result has it."""
    one = body.instructions.get(name)
    if array.space or one is None or one.opcode == "parameter" or continues(body, one):
        return 0
    if one.opcode == "bitcast":
        return _written(module, body, one.operands[0], array)
    if one.opcode == "fusion" and len(one.shape) == 1 and (called := module.callee(one)):
        return _written(module, called, called.root, array)
    if one.opcode in ("dynamic-update-slice", "scatter") and _in_place(body, one):
        updates = one.operands[1 if one.opcode != "scatter" else len(one.operands) // 2 + 1]
        earlier = _written(module, body, one.operands[0], array)
        parts = sum(a._replace(dtype=array.dtype).bytes for a in body.arrays(updates))
        return min(earlier + parts, array.bytes)
    return array.bytes


def _in_place(body: hlo.Computation, one: hlo.Instruction) -> bool:
    """Whether an update changes an array that the fusion was given."""
    chain = ("dynamic-update-slice", "scatter", "bitcast")
    while one.opcode in chain and one.operands[0] in body.instructions:
        one = body.instructions[one.operands[0]]
    return one.opcode == "parameter"


def continues(body: hlo.Computation, one: hlo.Instruction) -> bool:
    """Whether a collective inside a fusion was begun by an earlier one.

    A TPU runs other work beside a collective: several fusions hold the same collective, of which
    the first feeds `AsyncCollectiveStart`.
    """
    if collective_kind(one.opcode) is None or one.field(r"(chain_id)") is None:
        return False
    users = [target(user) for user, _ in body.users.get(one.name, ())]
    return "AsyncCollectiveStart" not in users


def collective_kind(opcode: str) -> str | None:
    """Kind of a collective, or of its start."""
    kind = opcode.removesuffix("-start")
    return kind if kind in KINDS else None


# FLOPs


def flops(module: hlo.Module, computation: hlo.Computation, one: hlo.Instruction) -> int:
    """FLOPs of one run of an instruction: its dots, convolutions and declared kernels."""
    if one.opcode == "dot" and one.shape:
        return _dot(computation, one)
    if one.opcode == "convolution" and one.shape:
        return _convolution(computation, one)
    if one.opcode == "custom-call":
        known = declared(one)
        is_product = target(one).startswith("__cublas") and one.shape
        return known.get("flops", 0) if known else _dot(computation, one) if is_product else 0
    if one.opcode == "fusion" and (called := module.callee(one)):
        return sum(flops(module, called, each) for each in called.instructions.values())
    return 0


def _dot(computation: hlo.Computation, one: hlo.Instruction) -> int:
    left = computation.arrays(one.operands[0])
    # the second form: a library call of a GPU
    axes = one.field(r'lhs_contracting_dim(?:s=\{|ensions":\[)([\d,"]*)') or ""
    contracted = math.prod(left[0].dims[int(axis)] for axis in re.findall(r"\d+", axes))
    return 2 * math.prod(one.shape[0].dims) * contracted


def _convolution(computation: hlo.Computation, one: hlo.Instruction) -> int:
    """Multiply-adds of elements that exist: neither padding nor holes of dilation count.

    A TPU writes a batched product as a convolution whose window walks the batch with dilation.
    """
    left, right = (computation.arrays(name)[0].dims for name in one.operands[:2])
    labels = one.field(r"dim_labels=(\w+_\w+->\w+)") or ""
    inputs, kernel, output = labels.replace("->", "_").split("_")
    window = one.field(r"window=\{([^}]*)\}") or ""
    positions = 1
    for axis, label in enumerate(sorted(label for label in inputs if label.isdigit())):
        sizes = (
            left[inputs.index(label)],
            right[kernel.index(label)],
            one.shape[0].dims[output.index(label)],
        )
        positions *= _positions(*sizes, _window(window, axis))
    groups = int(one.field(r"batch_group_count=(\d+)") or 1)
    multiplied = right[kernel.index("i")] * right[kernel.index("o")]
    return 2 * multiplied * left[inputs.index("b")] // groups * positions


class Window(NamedTuple):
    """How a kernel walks along one axis."""

    stride: int
    low: int
    input_dilation: int
    kernel_dilation: int


def _window(text: str, axis: int) -> Window:
    fields = dict(part.split("=") for part in text.split())

    def number(name: str, default: str) -> int:
        return int(fields[name].split("x")[axis].split("_")[0] if name in fields else default)

    return Window(
        number("stride", "1"),
        number("pad", "0"),
        number("lhs_dilate", "1"),
        number("rhs_dilate", "1"),
    )


@functools.cache
def _positions(size: int, kernel: int, output: int, window: Window) -> int:
    """Pairs of (output, kernel element) that meet an element of the input, along one axis."""
    end = (size - 1) * window.input_dilation + 1
    found = 0
    for element in range(kernel):
        first = element * window.kernel_dilation - window.low
        found += sum(
            0 <= at < end and at % window.input_dilation == 0
            for at in range(first, first + output * window.stride, window.stride)
        )
    return found
