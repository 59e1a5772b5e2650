"""One user's arrays as one row of bytes, and back.

A batch of states is a dict of *columns*: name -> array with leading batch axis B. A `RowSpec`
fixes names, shapes and dtypes; it packs the columns of B users into `uint8 [B, row_bytes]`:
fields in the order of the spec, C order, little-endian on every machine, no padding between
them. Packing is exact: it keeps every bit, NaN payloads and signed zeros included.

`state_columns` / `state_from_columns` move between columns and the nested NamedTuples of
`jaxrec.types` (`tokens.k` is the column of `UserState.tokens.k`; a field that is None has no
column); arrays with a leading layer axis (`[L, B, ...]`) become `[B, L, ...]`.
"""

import dataclasses
import functools
import math
import typing
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

import ml_dtypes
import numpy as np

from jaxrec.types import Array, UserState

Columns: TypeAlias = dict[str, np.ndarray]
JsonField: TypeAlias = list[Any]  # name, shape, dtype: JSON values

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
DTYPES = {
    dtype.name: dtype
    for dtype in [BFLOAT16]
    + [np.dtype(name) for name in ("bool", "float16", "float32", "float64")]
    + [np.dtype(f"{sign}int{bits}") for sign in ("", "u") for bits in (8, 16, 32, 64)]
}
# columns whose arrays are [L, B, ...] in the state and [B, L, ...] in the store
LAYERED = ("tokens.k", "tokens.v")


class Field(NamedTuple):
    """One array of a row: `shape` without the batch axis, `dtype` a key of `DTYPES`."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        """Bytes of one user."""
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize


@dataclasses.dataclass(frozen=True)
class RowSpec:
    """The fields of a row, in order. Raises ValueError on a field that cannot be stored."""

    fields: tuple[Field, ...]

    def __post_init__(self) -> None:
        if not self.fields:
            raise ValueError("a row needs at least one field")
        names = [field.name for field in self.fields]
        if len(set(names)) < len(names):
            raise ValueError(f"row fields must have different names: {names}")
        for field in self.fields:
            if field.dtype not in DTYPES:
                raise ValueError(
                    f"row field {field.name}: dtype {field.dtype!r} cannot be stored; "
                    f"allowed are {', '.join(DTYPES)}"
                )
            if any(size < 0 for size in field.shape):
                raise ValueError(f"row field {field.name}: negative size in {field.shape}")
        if not self.row_bytes:
            raise ValueError(f"a row without bytes: {names} are all empty")

    @classmethod
    def of(cls, columns: Mapping[str, Array]) -> "RowSpec":
        """The spec of a batch of columns [B, ...].

        >>> RowSpec.of({"x": np.zeros((5, 2, 3), np.float32)}).row_bytes
        24
        """
        fields = []
        for name, column in columns.items():
            array = np.asarray(column)
            if not array.ndim:
                raise ValueError(f"column {name}: a leading batch axis is needed, found a scalar")
            fields.append(Field(name, array.shape[1:], array.dtype.name))
        return cls(tuple(fields))

    @classmethod
    def from_json(cls, fields: list[JsonField]) -> "RowSpec":
        """The inverse of `to_json`. Raises TypeError or ValueError for anything else."""
        made = [Field(name, tuple(shape), dtype) for name, shape, dtype in fields]
        for name, shape, dtype in made:
            sizes = all(type(size) is int for size in shape)
            if not (isinstance(name, str) and isinstance(dtype, str) and sizes):
                raise ValueError(f"row field {name!r}: shape {shape!r} and dtype {dtype!r}")
        return cls(tuple(made))

    def to_json(self) -> list[JsonField]:
        """`[[name, shape, dtype], ...]`."""
        return [[field.name, list(field.shape), field.dtype] for field in self.fields]

    @functools.cached_property
    def row_bytes(self) -> int:
        """Bytes of one user."""
        return sum(field.nbytes for field in self.fields)

    def pack(self, columns: Mapping[str, Array]) -> np.ndarray:
        """columns -> uint8 [B, row_bytes]; raises ValueError naming the column that differs.

        Dtypes must equal the spec's: a silent cast would lose what the caller meant to keep.
        """
        expected = [field.name for field in self.fields]
        if set(columns) != set(expected):
            raise ValueError(f"columns {sorted(columns)} differ from the row's {sorted(expected)}")
        batch = len(np.asarray(columns[expected[0]]))
        rows = np.empty((batch, self.row_bytes), np.uint8)
        start = 0
        for name, shape, dtype in self.fields:
            array = np.asarray(columns[name])
            if array.shape != (batch, *shape) or array.dtype.name != dtype:
                raise ValueError(
                    f"column {name}: {array.dtype.name} {array.shape} found, "
                    f"{dtype} {(batch, *shape)} needed"
                )
            native = np.ascontiguousarray(array, DTYPES[dtype])
            size = native.dtype.itemsize
            words = native.reshape(batch, math.prod(shape)).view(f"u{size}")
            raw = words.astype(f"<u{size}", copy=False).view(np.uint8)
            rows[:, start : start + raw.shape[1]] = raw
            start += raw.shape[1]
        return rows

    def unpack(self, rows: np.ndarray) -> Columns:
        """uint8 [B, row_bytes] -> columns (new, writable arrays)."""
        if rows.dtype != np.uint8 or rows.ndim != 2 or rows.shape[1] != self.row_bytes:
            raise ValueError(
                f"rows: {rows.dtype.name} {rows.shape} found, uint8 (B, {self.row_bytes}) needed"
            )
        columns: Columns = {}
        start = 0
        for field in self.fields:
            size = DTYPES[field.dtype].itemsize
            raw = np.array(rows[:, start : start + field.nbytes], order="C")
            words = raw.view(f"<u{size}").astype(f"u{size}", copy=False)
            columns[field.name] = words.view(DTYPES[field.dtype]).reshape(len(rows), *field.shape)
            start += field.nbytes
        return columns


def state_columns(state: Any, prefix: str = "") -> Columns:
    """Nested NamedTuples of arrays -> columns with dotted names, batch axis first."""
    columns: Columns = {}
    for name, value in zip(state._fields, state, strict=True):
        if value is None:  # the state does not have it
            continue
        if hasattr(value, "_fields"):
            columns |= state_columns(value, f"{prefix}{name}.")
        else:
            array = np.asarray(value)
            layered = prefix + name in LAYERED
            columns[prefix + name] = np.moveaxis(array, 1, 0) if layered else array
    return columns


def state_from_columns(
    columns: Mapping[str, np.ndarray], kind: type = UserState, prefix: str = ""
) -> Any:
    """The inverse of `state_columns`; `kind` is the NamedTuple to build."""
    hints = typing.get_type_hints(kind)
    values = []
    for name in kind._fields:  # type: ignore[attr-defined]
        inner = _nested(hints[name], columns, f"{prefix}{name}.")
        if inner is not None:
            values.append(state_from_columns(columns, inner, f"{prefix}{name}."))
        elif prefix + name in columns or not _optional(hints[name]):
            array = columns[prefix + name]
            layered = prefix + name in LAYERED
            values.append(np.moveaxis(array, 0, 1) if layered else array)
        else:
            values.append(None)
    return kind(*values)


def _nested(hint: Any, columns: Mapping[str, np.ndarray], prefix: str) -> type | None:
    """The NamedTuple type of a field; of a union, the one whose columns are present."""
    kinds = [kind for kind in typing.get_args(hint) or (hint,) if hasattr(kind, "_fields")]
    for kind in kinds[:-1]:
        hints = typing.get_type_hints(kind)
        if all(prefix + n in columns or _optional(hints[n]) for n in kind._fields):
            return kind
    return kinds[-1] if kinds else None


def _optional(hint: Any) -> bool:
    """Whether a field may be None, which has no column."""
    return type(None) in typing.get_args(hint)
