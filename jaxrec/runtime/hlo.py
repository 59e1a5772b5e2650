"""The text of a compiled program, read: computations, instructions, shapes, source lines.

Text is what every compiler behind `compiled.as_text()` gives. It names the layout of an array with
its tiles and its memory: `f32[129,8]{0,1:T(8,128)S(1)}` is 129 x 8 numbers, the first dimension
along the lanes, padded to tiles of 8 x 128, in memory space 1 (fast memory of a TPU's core).
"""

import dataclasses
import functools
import math
import re
from typing import NamedTuple

BITS = {
    **{"pred": 8, "bf16": 16, "f16": 16, "f32": 32, "f64": 64, "c64": 64, "c128": 128},
    **{f"{sign}{n}": n for sign in "su" for n in (2, 4, 8, 16, 32, 64)},
}

_ARRAY = re.compile(r"\b([a-z]+\d+\w*|pred)\[([\d,<=]*)\](?:\{([\d,]*)(?::([^}]*))?\})?")
_TILE = re.compile(r"T\(([\d,]+)\)")
_SPACE = re.compile(r"S\((\d+)\)")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\(")
_ROW = re.compile(r'^(\d+) (?:"(.*)"|\{(.*)\})$')
_FIELD = re.compile(r"(\w+)=(\d+)")
_CALLED = re.compile(
    r"\b(body|condition|calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)"
)
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_FRAME = re.compile(r"stack_frame_id=(\d+)")
_FILE = re.compile(r'source_file="([^"]*)"(?: source_line=(\d+))?')
_TABLES = ("FileNames", "FunctionNames", "FileLocations", "StackFrames")


class Array(NamedTuple):
    """One array: type, sizes, dimensions from minor to major, tile, memory space (0: main)."""

    dtype: str
    dims: tuple[int, ...]
    order: tuple[int, ...] = ()
    tile: tuple[int, ...] = ()
    space: int = 0

    @property
    def bytes(self) -> int:
        """Bytes in memory, with what fills the last tile of a dimension.

        >>> Array("f32", (129, 8), (0, 1), (8, 128)).bytes == 8 * 256 * 4
        True
        """
        minor_first = [self.dims[axis] for axis in self.order] or list(reversed(self.dims))
        for axis, size in enumerate(reversed(self.tile)):
            if axis < len(minor_first):
                minor_first[axis] = -(-minor_first[axis] // size) * size
        return math.prod(minor_first) * self._bits // 8

    @property
    def logical_bytes(self) -> int:
        """Bytes of the numbers alone, without padding."""
        return math.prod(self.dims) * self._bits // 8

    @property
    def _bits(self) -> int:
        return BITS.get(self.dtype, 8 if self.dtype.startswith("f8") else 0)

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.dims))}]"


class Instruction(NamedTuple):
    """One line. shape: arrays of the result, tuples flattened; rest: all behind the operands."""

    name: str
    opcode: str
    shape: tuple[Array, ...]
    operands: tuple[str, ...]
    arguments: str
    rest: str

    def called(self) -> dict[str, str]:
        """attribute (`body`, `condition`, `calls` ...) -> computation; branches are not here."""
        return dict(_CALLED.findall(self.rest))

    def branches(self) -> list[str]:
        """Computations of a conditional."""
        if match := _BRANCHES.search(self.rest):
            return [name.strip().lstrip("%") for name in match[1].split(",")]
        return [name for attribute, name in self.called().items() if "_computation" in attribute]

    def field(self, pattern: str) -> str | None:
        """First group of a regular expression in the attributes."""
        match = re.search(pattern, self.rest)
        return match[1] if match else None


@dataclasses.dataclass(eq=False)
class Computation:
    """Instructions by name; root: the one whose value is the result."""

    name: str
    instructions: dict[str, Instruction] = dataclasses.field(default_factory=dict)
    root: str = ""

    @functools.cached_property
    def parameters(self) -> dict[int, str]:
        """number -> name"""
        found = {}
        for name, one in self.instructions.items():
            if one.opcode == "parameter":
                found[int(one.arguments)] = name
        return found

    @functools.cached_property
    def users(self) -> dict[str, list[tuple[Instruction, int]]]:
        """name -> (instruction that reads it, as which operand)"""
        found: dict[str, list[tuple[Instruction, int]]] = {}
        for one in self.instructions.values():
            for position, operand in enumerate(one.operands):
                found.setdefault(operand, []).append((one, position))
        return found

    def arrays(self, name: str) -> tuple[Array, ...]:
        """Shape of an instruction; empty where the text does not have it."""
        return self.instructions[name].shape if name in self.instructions else ()


@dataclasses.dataclass(eq=False)
class Module:
    """Computations by name, the one that runs, and the tables of source lines."""

    entry: str
    computations: dict[str, Computation]
    tables: dict[str, dict[int, str]]

    def callee(self, instruction: Instruction) -> Computation | None:
        """The computation of a fusion or call."""
        called = instruction.called()
        return self.computations.get(called.get("calls") or called.get("to_apply", ""))

    def source(self, instruction: Instruction) -> str:
        """`file:line` of the innermost frame outside installed packages; empty where unknown."""
        if match := _FILE.search(instruction.rest):
            return _short(match[1]) + (f":{match[2]}" if match[2] else "")
        match = _FRAME.search(instruction.rest)
        frame, first = int(match[1]) if match else 0, ""
        while frame in self.tables["StackFrames"]:
            fields = dict(_FIELD.findall(self.tables["StackFrames"][frame]))
            place = self.tables["FileLocations"].get(int(fields.get("file_location_id", 0)), "")
            where = dict(_FIELD.findall(place))
            file = self.tables["FileNames"].get(int(where.get("file_name_id", 0)), "")
            line = f"{_short(file)}:{where.get('line', '?')}" if file else ""
            if file and "site-packages" not in file:
                return line
            first = first or line
            # the text counts parents from two: 1 is none
            frame = min(int(fields.get("parent_frame_id", 0)) - 1, frame - 1)
        return first


def op_name(instruction: Instruction) -> str:
    """Name of the traced operation, such as `jit(step)/Network/gather`; empty where unknown."""
    match = _OP_NAME.search(instruction.rest)
    return match[1].split(";")[0].replace("\\'", "'") if match else ""


def parse(text: str) -> Module:
    """The module of `compiled.as_text()`."""
    module = Module("", {}, {name: {} for name in _TABLES})
    current: Computation | None = None
    table: dict[int, str] = {}
    for line in text.splitlines():
        if line in _TABLES:
            table = module.tables[line]
        elif row := _ROW.match(line):
            table[int(row[1])] = row[2] or row[3] or ""
        elif header := _COMPUTATION.match(line):
            current = module.computations[header[2]] = Computation(header[2])
            module.entry = header[2] if header[1] else module.entry
        elif current is not None and (match := _INSTRUCTION.match(line)):
            arguments, rest = _split(line, match.end())
            one = Instruction(
                match[2], match[4], arrays(match[3]), _names(arguments), arguments, rest
            )
            current.instructions[one.name] = one
            current.root = one.name if match[1] or not current.root else current.root
    return module


def arrays(shape: str) -> tuple[Array, ...]:
    """Arrays of a shape, tuples flattened.

    >>> [a.bytes for a in arrays("(bf16[2,4]{1,0:T(8,128)(2,1)}, u32[]{:S(2)}, pred[3])")]
    [2048, 4, 3]
    """
    found = []
    for dtype, dims, order, layout in _ARRAY.findall(shape):
        tile, space = _TILE.search(layout), _SPACE.search(layout)
        found.append(
            Array(
                dtype,
                _numbers(dims.replace("<=", "")),
                _numbers(order),
                _numbers(tile[1]) if tile else (),
                int(space[1]) if space else 0,
            )
        )
    return tuple(found)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(n) for n in text.split(",") if n)


def _split(line: str, start: int) -> tuple[str, str]:
    """What is inside the parenthesis that opens before `start`, and what is behind it."""
    depth, position = 1, start
    while depth and position < len(line):
        depth += {"(": 1, ")": -1}.get(line[position], 0)
        position += 1
    return line[start : position - 1], line[position:]


def _names(arguments: str) -> tuple[str, ...]:
    """Operands, which some compilers print with their shapes."""
    if "%" in arguments:
        return tuple(re.findall(r"%([\w.\-]+)", arguments))
    return tuple(re.findall(r"[A-Za-z_][\w.\-]*", arguments)) if "[" not in arguments else ()


def _short(file: str) -> str:
    """A path from the package's own folder on, so that it names no machine."""
    parts = file.split("/")
    if "jaxrec" in parts:
        return "/".join(parts[len(parts) - 1 - parts[::-1].index("jaxrec") :])
    return "/".join(parts[-2:])
