"""How much a `.zst` file can unpack to, from the headers of its blocks (RFC 8878).

Nothing is unpacked and no library is needed: a block says how long it is, and unpacks to at most
128 KiB.
"""

import os
from pathlib import Path
from typing import BinaryIO

MAX_BLOCK = 1 << 17
_FRAME, _SKIPPED, _SKIPPED_MASK = 0xFD2FB528, 0x184D2A50, 0xFFFFFFF0
_RAW, _RLE, _RESERVED = 0, 1, 3  # types of blocks; 2 is compressed
_ID_BYTES = (0, 1, 2, 4)  # of a dictionary
_SIZE_BYTES = (0, 2, 4, 8)  # of what a frame unpacks to


def most_bytes(file: Path) -> int:
    """An upper bound of the bytes that a file unpacks to.

    Raises ValueError for a file that is no whole sequence of frames, OSError.
    """
    total = 0
    with file.open("rb") as stream:
        end = os.fstat(stream.fileno()).st_size
        while stream.tell() < end:
            total += _frame(stream)
        if stream.tell() != end:
            raise ValueError("the last block of the file is cut")
    return total


def _frame(stream: BinaryIO) -> int:
    magic = _number(stream, 4)
    if magic & _SKIPPED_MASK == _SKIPPED:
        stream.seek(_number(stream, 4), os.SEEK_CUR)
        return 0
    if magic != _FRAME:
        raise ValueError("not a Zstandard frame")
    head = _number(stream, 1)
    single, checksum = head >> 5 & 1, head >> 2 & 1
    window = MAX_BLOCK if single else _window(_number(stream, 1))
    _number(stream, _ID_BYTES[head & 3])
    size_bytes = _SIZE_BYTES[head >> 6] or single
    declared = _number(stream, size_bytes) + (256 if size_bytes == 2 else 0)
    most = min(MAX_BLOCK, declared if single else window)
    total = 0
    while True:
        block = _number(stream, 3)
        last, kind, size = block & 1, block >> 1 & 3, block >> 3
        if kind == _RESERVED or size > MAX_BLOCK:
            raise ValueError("a block that no writer makes")
        total += size if kind in (_RAW, _RLE) else most
        stream.seek(1 if kind == _RLE else size, os.SEEK_CUR)
        if last:
            stream.seek(4 * checksum, os.SEEK_CUR)
            return total


def _window(descriptor: int) -> int:
    base = 1 << (10 + (descriptor >> 3))
    return base + base // 8 * (descriptor & 7)


def _number(stream: BinaryIO, size: int) -> int:
    content = stream.read(size)
    if len(content) != size:
        raise ValueError("the file ends in a frame")
    return int.from_bytes(content, "little")
