"""The stated bounds of every encoding hold, and what an encoding cannot hold is refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxrec.state_store import encodings
from jaxrec.types import KV, TokenOutputs, UserState

vectors = st.builds(
    lambda seed, scale, shape: (
        np.random.default_rng(seed).standard_normal(shape).astype(np.float32) * np.float32(scale)
    ),
    st.integers(0, 2**32 - 1),
    st.floats(-40, 16).map(lambda e: 2.0**e),
    st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 9)),
)


@given(vectors)
def test_float32_is_exact(x):
    codes, scales = encodings.encode_vectors(x, "float32")
    assert scales is None
    np.testing.assert_array_equal(encodings.decode_vectors(codes, scales), x)


@given(vectors)
def test_bfloat16_bound(x):
    codes, scales = encodings.encode_vectors(x, "bfloat16")
    assert scales is None
    assert codes.dtype.itemsize == 2
    again = encodings.decode_vectors(codes, scales)
    normal = np.abs(x) >= np.finfo(np.float32).tiny
    assert (np.abs(again - x)[normal] <= 2.0**-8 * np.abs(x)[normal]).all()


@given(vectors)
def test_int8_bound(x):
    codes, scales = encodings.encode_vectors(x, "int8")
    assert (codes.dtype, scales.dtype) == (np.int8, np.float16)
    assert scales.shape == x.shape[:-1]
    again = encodings.decode_vectors(codes, scales)
    s = scales.astype(np.float64)[..., None]
    m = np.abs(x).max(-1, keepdims=True).astype(np.float64)
    assert (s <= m / 127 * (1 + 2**-10) + 2**-24).all()
    assert (np.abs(again - x) <= s / 2 * (1 + 2**-15)).all()
    assert (np.abs(codes.astype(int)) <= 127).all()


@given(vectors)
def test_int8_of_what_was_decoded_changes_at_most_one_rounding(x):
    """Encoding again may move a value by the new scale's half step, not more."""
    once = encodings.decode_vectors(*encodings.encode_vectors(x, "int8"))
    codes, scales = encodings.encode_vectors(once, "int8")
    twice = encodings.decode_vectors(codes, scales)
    assert (np.abs(twice - once) <= scales.astype(np.float32)[..., None] / 2 * 1.0001).all()


def test_zeros_and_tiny_values():
    x = np.zeros((2, 3), np.float32)
    x[1] = 1e-12  # below the smallest float16 scale
    for encoding in encodings.ENCODINGS:
        again = encodings.decode_vectors(*encodings.encode_vectors(x, encoding))
        np.testing.assert_array_equal(again[0], 0)
        np.testing.assert_allclose(again[1], 1e-12, atol=2.0**-25, rtol=2.0**-8)


@pytest.mark.parametrize("encoding", ["bfloat16", "int8"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_finite_values_are_refused_where_they_would_change(encoding, bad):
    with pytest.raises(ValueError, match=f"{encoding}: the vectors hold NaN or infinite"):
        encodings.encode_vectors(np.array([[1, bad]], np.float32), encoding)


def test_magnitudes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="bfloat16: a magnitude above"):
        encodings.encode_vectors(np.array([[3.4e38]], np.float32), "bfloat16")
    with pytest.raises(ValueError, match=r"int8: a magnitude of 1e\+07"):
        encodings.encode_vectors(np.array([[1e7]], np.float32), "int8")


def test_unknown_form_is_refused():
    with pytest.raises(ValueError, match="'int4': allowed are float32, bfloat16, int8"):
        encodings.encode_vectors(np.zeros((1, 2), np.float32), "int4")


def make_state(seed=0, tokens=6, inputs=True):
    rng = np.random.default_rng(seed)
    layers, users = 2, 3
    shape = (layers, users, tokens, 2, 4)
    kv = KV(
        rng.standard_normal(shape).astype(np.float32),
        rng.standard_normal(shape).astype(np.float32),
        rng.standard_normal((users, tokens, 8)).astype(np.float32) if inputs else None,
        rng.integers(0, 99, (users, tokens)).astype(np.int32),
        rng.integers(0, 2, (users, tokens)).astype(bool),
    )
    rest = {
        "readout": rng.standard_normal((users, 8)).astype(np.float32),
        "memory": rng.integers(0, 9, (users, 5)).astype(np.int32),
        "memory_times": rng.integers(0, 9, (users, 5)).astype(np.int32),
        "items": rng.integers(0, 9, (users, 4)).astype(np.int32),
        "times": rng.integers(0, 9, (users, 4)).astype(np.int32),
    }
    counts = {name: np.arange(users, dtype=np.int32) for name in ("pending", "segments", "events")}
    return UserState(tokens=kv, **rest, **counts)


@pytest.mark.parametrize("encoding", encodings.ENCODINGS)
@pytest.mark.parametrize(("tokens", "inputs"), [(6, True), (6, False), (0, False)])
def test_states_round_trip(encoding, tokens, inputs):
    """Vectors within the encoding's bound, everything else exactly; also without K/V."""
    state = make_state(tokens=tokens, inputs=inputs)
    columns = encodings.encode_state(state, encoding)
    assert all(len(column) == 3 for column in columns.values())
    again = encodings.decode_state(columns, encoding)
    largest = (
        np.abs(state.tokens.k).max(initial=1)
        / {"float32": np.inf, "bfloat16": 256, "int8": 253}[encoding]
    )
    np.testing.assert_allclose(again.tokens.k, state.tokens.k, atol=largest, rtol=0)
    np.testing.assert_allclose(again.tokens.v, state.tokens.v, atol=2 * largest, rtol=0)
    assert (again.tokens.inputs is not None) == inputs == ("tokens.inputs" in columns)
    if inputs:
        bound = 2 * largest
        np.testing.assert_allclose(again.tokens.inputs, state.tokens.inputs, atol=bound, rtol=0)
    for name in state._fields[1:]:
        np.testing.assert_array_equal(getattr(again, name), getattr(state, name), err_msg=name)
    np.testing.assert_array_equal(again.tokens.times, state.tokens.times)
    np.testing.assert_array_equal(again.tokens.valid, state.tokens.valid)


@pytest.mark.parametrize("encoding", encodings.ENCODINGS)
def test_states_of_outputs_round_trip(encoding):
    """A state keeps one kind of tokens; the columns say which."""
    rng = np.random.default_rng(1)
    state = make_state()
    outputs = rng.standard_normal((3, 6, 8)).astype(np.float32)
    tokens = TokenOutputs(outputs, state.tokens.times, state.tokens.valid)
    columns = encodings.encode_state(state._replace(tokens=tokens), encoding)
    assert set(columns) - {"tokens.outputs_scale"} == {
        "tokens.outputs",
        "tokens.times",
        "tokens.valid",
        *state._fields[1:],
    }
    again = encodings.decode_state(columns, encoding)
    assert isinstance(again.tokens, TokenOutputs)
    np.testing.assert_allclose(again.tokens.outputs, outputs, atol=0.05)
    np.testing.assert_array_equal(again.tokens.valid, tokens.valid)


def test_decoding_with_another_encoding_is_refused():
    columns = encodings.encode_state(make_state(), "int8")
    with pytest.raises(ValueError, match=r"encoding 'float32' needs the scale columns \[\], found"):
        encodings.decode_state(columns, "float32")
    del columns["tokens.k_scale"]
    with pytest.raises(ValueError, match=r"tokens\.k_scale"):
        encodings.decode_state(columns, "int8")


def test_messages_name_the_column():
    state = make_state()
    kv = state.tokens._replace(v=np.full_like(state.tokens.v, np.nan))
    with pytest.raises(ValueError, match=r"column tokens\.v: encoding int8"):
        encodings.encode_state(state._replace(tokens=kv), "int8")
