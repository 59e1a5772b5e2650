"""Histories <-> serialized `tf.train.Example` records, vectorized and byte for byte reproducible.

TFDS can read the records too, several times slower. Protocol buffers leave the order of map entries
open and their Python library varies it from run to run; here entries are sorted by name, so equal
histories give equal files. Whole buckets are encoded with NumPy: a record takes microseconds.

The message, from tensorflow/core/example/{example,feature}.proto: Example{1: Features}, Features{1:
map<string, Feature>}, Feature{1: BytesList | 3: Int64List}, BytesList{1: repeated bytes},
Int64List{1: packed varints}.
"""

from collections.abc import Iterator, Sequence
from typing import cast

import numpy as np

LENGTH_DELIMITED = {1: b"\x0a", 2: b"\x12", 3: b"\x1a"}  # tags of field numbers


def encode(
    users: np.ndarray,
    raw_ids: Sequence[int | str],
    counts: np.ndarray,
    lists: dict[str, np.ndarray],
) -> Iterator[bytes]:
    """One record for each user.

    users: int [U] dense indices. raw_ids: [U]. counts: int [U], events of each user.
    lists: feature -> int or bool [N] values >= 0 of all events, user after user.
    """
    packed = {}
    ends = np.cumsum(counts)
    for name, column in lists.items():
        size, buffer = varints(column)
        # bytes before each user, from bytes of each value
        stops = np.concatenate([[0], np.cumsum(size)])[np.concatenate([[0], ends])]
        packed[name] = (stops.tolist(), buffer.tobytes())
    names = sorted([*lists, "raw_id", "user"])
    keys = {name: _field(1, name.encode()) for name in names}
    for row, (user, raw) in enumerate(zip(users.tolist(), raw_ids, strict=True)):
        entries = []
        for name in names:
            if name == "user":
                feature = _int_list(_varint(user))
            elif name == "raw_id":
                feature = _bytes_list(raw) if isinstance(raw, str) else _int_list(_varint(raw))
            else:
                stops, values = packed[name]
                feature = _int_list(values[stops[row] : stops[row + 1]])
            entries.append(_field(1, keys[name] + _field(2, feature)))
        yield _field(1, b"".join(entries))


def varints(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Base-128 varints of values [N]: (bytes of each, int64 [N]; all bytes in a row, uint8)."""
    rest = np.asarray(values).astype(np.uint64)
    size = np.ones(len(rest), np.int64)
    bound = 7
    largest = int(rest.max(initial=0))
    while largest >> bound:
        size += rest >= np.uint64(1 << bound)
        bound += 7
    place = np.cumsum(size) - size
    buffer = np.zeros(int(size.sum()), np.uint8)
    alive = np.arange(len(rest))
    for index in range(int(size.max(initial=0))):
        more = size[alive] > index + 1
        low = (rest[alive] >> np.uint64(7 * index)).astype(np.uint8) & 0x7F
        buffer[place[alive] + index] = low | (more.astype(np.uint8) << 7)
        alive = alive[more]
    return size, buffer


def _varint(value: int) -> bytes:
    value &= 2**64 - 1  # negative integers take ten bytes
    content = bytearray()
    while value > 0x7F:
        content.append(value & 0x7F | 0x80)
        value >>= 7
    content.append(value)
    return bytes(content)


def _field(number: int, content: bytes) -> bytes:
    return LENGTH_DELIMITED[number] + _varint(len(content)) + content


def _int_list(content: bytes) -> bytes:
    return _field(3, b"".join([b"\x0a", _varint(len(content)), content]))


def _bytes_list(text: str) -> bytes:
    return _field(1, _field(1, text.encode()))


def decode(records: Sequence[bytes]) -> list[dict[str, np.ndarray]]:
    """Features of serialized examples: int64 [N] lists, and texts as bytes objects.

    Raises ValueError for bytes that are no such message.
    """
    rows: list[dict[str, np.ndarray]] = []
    lists: dict[str, list[tuple[int, bytes]]] = {}
    for number, record in enumerate(records):
        row: dict[str, np.ndarray] = {}
        for entry in _fields(_only(record, 1), 1):
            key, feature = _pair(entry)
            name = key.decode()
            if feature[:1] == LENGTH_DELIMITED[3]:
                lists.setdefault(name, []).append((number, _only(_only(feature, 3), 1)))
            else:
                row[name] = cast(np.ndarray, _only(_only(feature, 1), 1))
        rows.append(row)
    for name, contents in lists.items():
        values, counts = _integers([content for _, content in contents])
        columns = np.split(values, np.cumsum(counts)[:-1])
        for (number, _), column in zip(contents, columns, strict=True):
            rows[number][name] = column
    return rows


def _integers(contents: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """The varints of all contents, int64 [N], and how many each content holds."""
    buffer = np.frombuffer(b"".join(contents), np.uint8)
    last = buffer < 0x80
    stops = np.cumsum([len(content) for content in contents])
    if len(buffer) and not last[stops[stops > 0] - 1].all():
        raise ValueError("a list of integers ends inside one")
    ends = np.flatnonzero(last)
    starts = np.concatenate([[0], ends[:-1] + 1]) if len(ends) else ends
    sizes = ends - starts + 1
    values = np.zeros(len(ends), np.uint64)
    alive = np.arange(len(ends))
    for index in range(int(sizes.max(initial=0))):
        alive = alive[sizes[alive] > index]
        bits = (buffer[starts[alive] + index] & 0x7F).astype(np.uint64)
        values[alive] |= bits << np.uint64(7 * index)
    counts = np.diff(np.concatenate([[0], np.cumsum(last)])[np.concatenate([[0], stops])])
    return values.astype(np.int64), counts


def _length(message: bytes, place: int) -> tuple[int, int]:
    """The length that is stored at `place`, and the place of its content."""
    value = shift = 0
    while True:
        if place >= len(message) or shift > 63:
            raise ValueError("the message ends inside a length")
        byte = message[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            break
        shift += 7
    if place + value > len(message):
        raise ValueError("the message is shorter than it says")
    return value, place


def _fields(message: bytes, number: int) -> Iterator[bytes]:
    place, tag = 0, LENGTH_DELIMITED[number][0]
    while place < len(message):
        if message[place] != tag:
            raise ValueError(f"field {number} expected, found tag {message[place]}")
        size, place = _length(message, place + 1)
        yield message[place : place + size]
        place += size


def _only(message: bytes, number: int) -> bytes:
    """The content of a message of one field; empty without the field."""
    contents = list(_fields(message, number))
    if len(contents) > 1:
        raise ValueError(f"field {number} occurs {len(contents)} times")
    return contents[0] if contents else b""


def _pair(entry: bytes) -> tuple[bytes, bytes]:
    """Key and value of a map entry."""
    if entry[:1] != LENGTH_DELIMITED[1]:
        raise ValueError("a map entry without key")
    size, place = _length(entry, 1)
    key, rest = entry[place : place + size], entry[place + size :]
    return key, _only(rest, 2)
