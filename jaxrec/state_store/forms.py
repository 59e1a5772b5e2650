"""Forms of stored vectors: float32, bfloat16, int8 with one scale per vector.

Error of a decoded value x' against x:

| form     | bytes per vector of H | bound                                                      |
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

from jaxrec.state_store.rows import BFLOAT16, Columns, state_columns, state_from_columns
from jaxrec.types import UserState

FORMS = ("float32", "bfloat16", "int8")
# columns of a UserState that a form applies to; all others are kept exactly
VECTORS = ("tokens.k", "tokens.v", "tokens.outputs")
SCALE = "_scale"
LARGEST_CODE = 127


def encode_vectors(vectors: np.ndarray, form: str) -> tuple[np.ndarray, np.ndarray | None]:
    """[..., H] floats -> (codes [..., H] in the form's dtype, scales float16 [...] or None).

    Raises ValueError on an unknown form and on values that the form cannot hold (NaN,
    infinities, magnitudes above 127 x 65504 in int8), because they would come back wrong.
    """
    if form not in FORMS:
        raise ValueError(f"form {form!r}: allowed are {', '.join(FORMS)}")
    vectors = np.asarray(vectors, np.float32)
    if form == "float32":
        return vectors, None
    if not np.isfinite(vectors).all():
        raise ValueError(f"form {form}: the vectors hold NaN or infinite values")
    if form == "bfloat16":
        codes = _quiet_cast(vectors, BFLOAT16)
        if not np.isfinite(codes.astype(np.float32)).all():
            raise ValueError("form bfloat16: a magnitude above 3.39e38 does not fit")
        return codes, None
    largest = np.abs(vectors).max(-1, initial=0.0)
    exact = largest / np.float32(LARGEST_CODE)
    scales = _quiet_cast(exact, np.dtype(np.float16))
    low = scales.astype(np.float32) < exact
    scales = np.where(low, np.nextafter(scales, np.float16(np.inf)), scales)
    if not np.isfinite(scales).all():
        raise ValueError(
            f"form int8: a magnitude of {largest.max():.4g} found, at most 127 x 65504 fits"
        )
    divisor = np.where(scales > 0, scales, np.float16(1)).astype(np.float32)
    return np.rint(vectors / divisor[..., None]).astype(np.int8), scales


def decode_vectors(codes: np.ndarray, scales: np.ndarray | None) -> np.ndarray:
    """The inverse of `encode_vectors`: float32 [..., H]."""
    decoded = codes.astype(np.float32)
    return decoded if scales is None else decoded * scales.astype(np.float32)[..., None]


def encode_state(state: UserState, form: str) -> Columns:
    """A batch of user states -> columns: K/V in `form`, everything else exactly."""
    return _encode(state_columns(state), form)


def decode_state(columns: Mapping[str, np.ndarray], form: str) -> UserState:
    """The inverse of `encode_state`; K/V come back as float32."""
    return state_from_columns(_decode(columns, form))


def _encode(columns: Columns, form: str) -> Columns:
    encoded: Columns = {}
    for name, column in columns.items():
        if name in VECTORS:
            try:
                encoded[name], scales = encode_vectors(column, form)
            except ValueError as error:
                raise ValueError(f"column {name}: {error}") from None
            if scales is not None:
                encoded[name + SCALE] = scales
        else:
            encoded[name] = column
    return encoded


def _decode(columns: Mapping[str, np.ndarray], form: str) -> Columns:
    expected = {name + SCALE for name in VECTORS if name in columns} if form == "int8" else set()
    found = {name + SCALE for name in VECTORS if name + SCALE in columns}
    if form not in FORMS or expected != found:
        raise ValueError(
            f"form {form!r} needs the scale columns {sorted(expected)}, found {sorted(found)}; "
            f"known forms are {', '.join(FORMS)}"
        )
    decoded: Columns = {}
    for name, column in columns.items():
        if name in VECTORS:
            decoded[name] = decode_vectors(column, columns.get(name + SCALE))
        elif name not in expected:
            decoded[name] = column
    return decoded


def _quiet_cast(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Cast whose overflow to infinity the caller checks, so NumPy need not warn."""
    with np.errstate(over="ignore"):
        return array.astype(dtype)
