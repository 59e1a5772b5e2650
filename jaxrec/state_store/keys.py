"""Raw user ids as database keys, the shard of a user, and rows as checksummed values.

key   = 2 bytes hash prefix | type (i, s) | id (int64: 8 bytes big-endian, offset; str: UTF-8)
value = version (uint32, 1) | CRC-32 of key and row (uint32) | row; little-endian

The hash prefix spreads keys evenly, so equal ranges of prefixes hold about equally many users,
whatever the ids look like: listing a shard needs bounded memory. The hash is part of the format
(splitmix64 for ints, BLAKE2b for strings): it must never change. The integer 5 and the
string "5" are different users. The checksum covers the key: a row under another user's key is
damage too.
"""

import hashlib
import struct
import zlib
from collections.abc import Iterable, Sequence
from typing import TypeAlias

import numpy as np

from jaxrec.types import UserId

# what callers may pass as ids of several users
UserIds: TypeAlias = Iterable[UserId | np.integer] | np.ndarray

HEADER = struct.Struct("<II")
ROW_VERSION = 1
MAX_ID_BYTES = 1024
_SIGN = 1 << 63


def hash_ints(ids: np.ndarray) -> np.ndarray:
    """int64 [B] -> uint64 [B]: splitmix64 (Steele, Lea, Flood 2014), wrapping arithmetic."""
    x = ids.astype(np.int64).view(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def hash_string(encoded: bytes) -> int:
    """UTF-8 bytes -> 64-bit hash."""
    return int.from_bytes(hashlib.blake2b(encoded, digest_size=8).digest(), "big")


def id_list(user_ids: object) -> list[UserId]:
    """Any sequence or array of ids as Python ints and strings.

    Raises TypeError on other types (floats, bools, None: an id that was rounded or is missing
    must not become a user) and ValueError on ints outside int64 and strings that are not
    valid Unicode or longer than 1024 bytes.

    >>> id_list(np.array([7, 8])) + id_list(["u7"])
    [7, 8, 'u7']
    """
    if isinstance(user_ids, str | bytes) or not isinstance(user_ids, Iterable):
        raise TypeError(f"user_ids={user_ids!r}: a sequence of ids is needed, not one id")
    if not isinstance(user_ids, np.ndarray):
        return [_checked(user_id) for user_id in user_ids]
    if user_ids.ndim != 1:
        raise ValueError(f"user_ids: one axis is needed, found shape {user_ids.shape}")
    return [_checked(user_id) for user_id in user_ids.tolist()]


def _checked(user_id: object) -> UserId:
    if isinstance(user_id, np.integer):
        user_id = int(user_id)
    if isinstance(user_id, int) and not isinstance(user_id, bool):
        if not -_SIGN <= user_id < _SIGN:
            raise ValueError(f"user id {user_id}: outside int64")
        return user_id
    if isinstance(user_id, str):
        try:
            size = len(user_id.encode())
        except UnicodeEncodeError:
            raise ValueError(f"user id {user_id!r}: not valid Unicode") from None
        if size > MAX_ID_BYTES:
            raise ValueError(f"user id {user_id[:40]!r}...: {size} bytes, at most {MAX_ID_BYTES}")
        return str(user_id)
    raise TypeError(f"user id {user_id!r}: int or str is needed, not {type(user_id).__name__}")


def encode_ids(user_ids: Sequence[UserId]) -> tuple[list[bytes], np.ndarray]:
    """Ids of `id_list` -> (keys, hashes uint64 [B]).

    >>> keys, hashes = encode_ids([5, "5"])
    >>> [decode_key(key) for key in keys]
    [5, '5']
    """
    hashes = np.zeros(len(user_ids), np.uint64)
    keys = [b""] * len(user_ids)
    ints = [i for i, user_id in enumerate(user_ids) if isinstance(user_id, int)]
    hashes[ints] = hash_ints(np.array([user_ids[i] for i in ints], np.int64))
    for i, user_id in enumerate(user_ids):
        if isinstance(user_id, int):
            tail = b"i" + (user_id + _SIGN).to_bytes(8, "big")
        else:
            encoded = user_id.encode()
            hashes[i] = hash_string(encoded)
            tail = b"s" + encoded
        keys[i] = (int(hashes[i]) >> 48).to_bytes(2, "big") + tail
    return keys, hashes


def decode_key(key: bytes) -> UserId:
    """The user id of a key."""
    if key[2:3] == b"i":
        return int.from_bytes(key[3:], "big") - _SIGN
    return key[3:].decode()


def shard_numbers(hashes: np.ndarray, num_shards: int) -> np.ndarray:
    """The shard of each hash, int64 [B]: by its low bits, as the high ones are the keys' prefix."""
    return (hashes % np.uint64(num_shards)).astype(np.int64)


def encode_rows(keys: Sequence[bytes], rows: np.ndarray) -> list[bytes]:
    """rows uint8 [B, row_bytes] -> stored values."""
    values = []
    for key, row in zip(keys, rows, strict=True):
        raw = row.tobytes()
        values.append(HEADER.pack(ROW_VERSION, checksum(key, raw)) + raw)
    return values


def checksum(key: bytes, row: bytes | memoryview) -> int:
    """CRC-32 of a key and its row."""
    return zlib.crc32(row, zlib.crc32(key))


def row_damage(key: bytes, value: bytes, row_bytes: int) -> str:
    """What is wrong with a stored value; empty when nothing is."""
    if len(value) != HEADER.size + row_bytes:
        return f"{len(value)} bytes found, {HEADER.size + row_bytes} expected"
    version, stored = HEADER.unpack_from(value)
    if checksum(key, memoryview(value)[HEADER.size :]) != stored:
        return "checksum mismatch: the bytes are not those that were written"
    if version != ROW_VERSION:
        return f"row version {version} found, {ROW_VERSION} expected"
    return ""


def decode_rows(values: Sequence[bytes], row_bytes: int) -> np.ndarray:
    """Stored values that `row_damage` passed -> uint8 [B, row_bytes]."""
    joined = np.frombuffer(b"".join(values), np.uint8)
    return joined.reshape(len(values), HEADER.size + row_bytes)[:, HEADER.size :]
