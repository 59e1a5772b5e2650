"""Packing is exact for every dtype and shape, and refuses what it would change."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxrec.state_store.row_format import (
    DTYPES,
    Field,
    RowSpec,
    state_columns,
    state_from_columns,
)
from jaxrec.types import KV, UserState

shapes = st.lists(st.integers(0, 4), max_size=3).map(tuple)


@st.composite
def specs(draw):
    kinds = draw(st.lists(st.tuples(shapes, st.sampled_from(sorted(DTYPES))), max_size=4))
    fields = [Field(f"f{i}", shape, dtype) for i, (shape, dtype) in enumerate(kinds)]
    return RowSpec((*fields, Field("last", (2,), "int16")))


def random_columns(spec, batch, seed):
    """Random bit patterns: NaN payloads and signed zeros included."""
    rng = np.random.default_rng(seed)
    result = {}
    for field in spec.fields:
        dtype = DTYPES[field.dtype]
        raw = rng.integers(0, 256, (batch, *field.shape, dtype.itemsize), dtype=np.uint8)
        if field.dtype == "bool":
            raw &= 1
        result[field.name] = raw.view(dtype)[..., 0]
    return result


@given(specs(), st.integers(0, 5), st.integers(0, 2**32 - 1))
def test_packing_keeps_every_bit(spec, batch, seed):
    columns = random_columns(spec, batch, seed)
    rows = spec.pack(columns)
    assert rows.shape == (batch, spec.row_bytes)
    again = spec.unpack(rows)
    assert list(again) == list(columns)
    for name, column in columns.items():
        assert again[name].dtype == column.dtype
        assert again[name].shape == column.shape
        assert again[name].tobytes() == column.tobytes()
        assert again[name].flags.writeable
    assert RowSpec.of(columns) == spec
    assert RowSpec.from_json(spec.to_json()) == spec


def test_layout_is_little_endian_and_dense():
    columns = {"a": np.array([[1, 2]], np.uint16), "b": np.array([258], np.int32)}
    spec = RowSpec.of(columns)
    assert spec.pack(columns).tolist() == [[1, 0, 2, 0, 2, 1, 0, 0]]
    swapped = {"a": columns["a"].astype(">u2"), "b": columns["b"][::-1]}
    assert spec.pack(swapped).tolist() == [[1, 0, 2, 0, 2, 1, 0, 0]]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"a": np.zeros((2, 3), np.float64)}, "column a: float64"),
        ({"a": np.zeros((2, 4), np.float32)}, r"\(2, 4\) found, float32 \(2, 3\) needed"),
        ({"b": np.zeros((2, 3), np.float32)}, "columns \\['b'\\] differ"),
    ],
)
def test_other_columns_are_refused(columns, message):
    spec = RowSpec.of({"a": np.zeros((1, 3), np.float32)})
    with pytest.raises(ValueError, match=message):
        spec.pack(columns)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ((), "at least one field"),
        ((Field("a", (1,), "int8"), Field("a", (1,), "int8")), "different names"),
        ((Field("a", (1,), "complex64"),), "complex64"),
        ((Field("a", (-1,), "int8"),), "negative size"),
        ((Field("a", (0,), "int8"),), "without bytes"),
    ],
)
def test_impossible_specs_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        RowSpec(fields)


def test_rows_of_another_size_and_scalars_are_refused():
    spec = RowSpec.of({"a": np.zeros((1, 3), np.float32)})
    with pytest.raises(ValueError, match=r"uint8 \(B, 12\) needed"):
        spec.unpack(np.zeros((2, 13), np.uint8))
    with pytest.raises(ValueError, match="column a: a leading batch axis"):
        RowSpec.of({"a": np.float32(1)})


def test_states_move_layers_behind_users():
    rng = np.random.default_rng(0)
    layers, batch, tokens = 3, 2, 4
    kv = KV(
        rng.standard_normal((layers, batch, tokens, 2, 5), np.float32),
        rng.standard_normal((layers, batch, tokens, 2, 5), np.float32),
        None,
        np.arange(batch * tokens).reshape(batch, tokens),
        np.ones((batch, tokens), bool),
    )
    others = [np.full((batch, 2), i) for i in range(len(UserState._fields) - 1)]
    state = UserState(kv, *others)
    columns = state_columns(state)
    assert columns["tokens.k"].shape == (batch, layers, tokens, 2, 5)
    assert "tokens.inputs" not in columns
    np.testing.assert_array_equal(columns["tokens.v"][1, 2], kv.v[2, 1])
    again = state_from_columns(columns)
    assert again.tokens.inputs is None
    for old, new in zip([*kv, *others], [*again.tokens, *again[1:]], strict=True):
        if old is not None:
            np.testing.assert_array_equal(old, new)
