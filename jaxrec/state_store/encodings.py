"""Encodings of stored vectors: float32, bfloat16, int8 with one scale per vector.

Error of a decoded value x' against x:

| encoding | bytes per vector of H | bound                                                      |
|----------|-----------------------|------------------------------------------------------------|
| float32  | 4 H                   | exact                                                      |
| bfloat16 | 2 H                   | abs(x' - x) <= 2**-8 abs(x)  (round to nearest even)       |
| int8     | H + 2                 | abs(x' - x) <= s / 2, s <= m / 127 (1 + 2**-10) + 2**-24   |

where m = max(abs(x)) of the vector (per user, layer, token and head) and s its scale, kept in
float16 and rounded up so that no code is clipped. bfloat16's bound holds for normal numbers,
int8's up to float32 rounding (a factor of 1 + 2**-15).
"""

from collections.abc import Mapping

import numpy as np

from jaxrec.state_store.row_format import BFLOAT16, Columns, state_columns, state_from_columns
from jaxrec.types import UserState

ENCODINGS = ("float32", "bfloat16", "int8")
# columns of a UserState that are encoded; all others are kept exactly
VECTORS = ("tokens.k", "tokens.v", "tokens.inputs", "tokens.outputs")
SCALE = "_scale"
LARGEST_CODE = 127


def encode_vectors(vectors: np.ndarray, encoding: str) -> tuple[np.ndarray, np.ndarray | None]:
    """[..., H] floats -> (codes [..., H] in the encoding's dtype, scales float16 [...] or None).

    Raises ValueError on an unknown encoding and on values that it cannot hold (NaN,
    infinities, magnitudes above 127 x 65504 in int8), because they would be decoded wrongly.

    >>> codes, scales = encode_vectors(np.array([[127.0, -63.6]]), "int8")
    >>> codes.tolist(), scales.tolist()
    ([[127, -64]], [1.0])
    """
    if encoding not in ENCODINGS:
        raise ValueError(f"encoding {encoding!r}: allowed are {', '.join(ENCODINGS)}")
    vectors = np.asarray(vectors, np.float32)
    if encoding == "float32":
        return vectors, None
    if not np.isfinite(vectors).all():
        raise ValueError(f"encoding {encoding}: the vectors hold NaN or infinite values")
    if encoding == "bfloat16":
        codes = _quiet_cast(vectors, BFLOAT16)
        if not np.isfinite(codes.astype(np.float32)).all():
            raise ValueError("encoding bfloat16: a magnitude above 3.39e38 does not fit")
        return codes, None
    largest = np.abs(vectors).max(-1, initial=0.0)
    exact = largest / np.float32(LARGEST_CODE)
    scales = _quiet_cast(exact, np.dtype(np.float16))
    low = scales.astype(np.float32) < exact
    scales = np.where(low, np.nextafter(scales, np.float16(np.inf)), scales)
    if not np.isfinite(scales).all():
        raise ValueError(
            f"encoding int8: a magnitude of {largest.max():.4g} found, at most 127 x 65504 fits"
        )
    divisor = np.where(scales > 0, scales, np.float16(1)).astype(np.float32)
    return np.rint(vectors / divisor[..., None]).astype(np.int8), scales


def decode_vectors(codes: np.ndarray, scales: np.ndarray | None) -> np.ndarray:
    """The inverse of `encode_vectors`: float32 [..., H]."""
    decoded = codes.astype(np.float32)
    return decoded if scales is None else decoded * scales.astype(np.float32)[..., None]


def encode_state(state: UserState, encoding: str) -> Columns:
    """A batch of user states -> columns [B, ...]: the tokens' vectors encoded, the rest exact.

    int8 adds a column of scales float16 [B, ..., H removed] per encoded column. Raises
    ValueError naming the column that cannot be encoded.
    """
    encoded: Columns = {}
    for name, column in state_columns(state).items():
        if name not in VECTORS:
            encoded[name] = column
            continue
        try:
            encoded[name], scales = encode_vectors(column, encoding)
        except ValueError as error:
            raise ValueError(f"column {name}: {error}") from None
        if scales is not None:
            encoded[name + SCALE] = scales
    return encoded


def decode_state(columns: Mapping[str, np.ndarray], encoding: str) -> UserState:
    """The inverse of `encode_state`; the tokens' vectors come back as float32.

    Raises ValueError on an unknown encoding, or when the columns have another one.
    """
    expected = (
        {name + SCALE for name in VECTORS if name in columns} if encoding == "int8" else set()
    )
    scale_columns = {name + SCALE for name in VECTORS if name + SCALE in columns}
    if encoding not in ENCODINGS or expected != scale_columns:
        raise ValueError(
            f"encoding {encoding!r} needs the scale columns {sorted(expected)}, found "
            f"{sorted(scale_columns)}; known encodings are {', '.join(ENCODINGS)}"
        )
    decoded: Columns = {}
    for name, column in columns.items():
        if name in VECTORS:
            decoded[name] = decode_vectors(column, columns.get(name + SCALE))
        elif name not in expected:
            decoded[name] = column
    return state_from_columns(decoded)


def _quiet_cast(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Cast whose overflow to infinity the caller checks, so NumPy need not warn."""
    with np.errstate(over="ignore"):
        return array.astype(dtype)
