"""Lines of text files, bounded before anything reads them whole.

Readers hold whole lines, so one endless line, or a small packed file that unpacks to one, would
decide how much memory is used. A file is read once in blocks, which are dropped at once.
"""

import gzip
import zlib
from pathlib import Path
from typing import IO, cast

from jaxrec.errors import DataError
from jaxrec.untrusted import zstd
from jaxrec.untrusted.arrays import check_unpacked
from jaxrec.untrusted.lines import MAX_LINE, too_long

BLOCK = MAX_LINE  # bytes that are in memory at a time: a longer line spans two blocks
CHUNK_BLOCKS = 8  # of lines that are read together


def rows_at_once(file: Path, most: int) -> int:
    """How many lines are read together: at most `most`, and no more bytes than some blocks.

    Raises DataError naming the file for a line beyond `MAX_LINE`, a `.gz` or `.zst` that unpacks
    to implausibly many bytes, and a damaged one.
    """
    size, plain, lines = file.stat().st_size, 0, most
    number, begun = 1, 0  # the line that is open, and its bytes in earlier blocks
    try:
        with _open(file, size) as stream:
            while block := stream.read(BLOCK):
                plain += len(block)
                if file.name.lower().endswith(".gz"):
                    check_unpacked(size, plain, "the file")
                ends = block.count(b"\n")
                if begun + (block.find(b"\n") if ends else len(block)) > MAX_LINE:
                    raise DataError(too_long(file, number))
                begun = len(block) - 1 - block.rfind(b"\n") + (0 if ends else begun)
                number += ends
                if len(block) == BLOCK:
                    lines = min(lines, CHUNK_BLOCKS * max(ends, 1))
    except (OSError, EOFError, ValueError, zlib.error) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{file}: cannot be read, the file is damaged or not what its ending says: {error}"
        ) from error
    return lines


def _open(file: Path, size: int) -> IO[bytes]:
    """The unpacked content. Raises ValueError for a `.zst` that declares too much, OSError."""
    name = file.name.lower()
    if name.endswith(".zst"):
        import pyarrow

        check_unpacked(size, zstd.most_bytes(file), "the file")
        return cast("IO[bytes]", pyarrow.input_stream(file, compression="zstd"))
    return cast("IO[bytes]", gzip.open(file) if name.endswith(".gz") else file.open("rb"))


def check_values(file: Path, values: int) -> None:
    """Raises DataError for a parquet file that holds implausibly many values for its size."""
    try:
        check_unpacked(file.stat().st_size, 8 * values, "the file")
    except ValueError as error:
        raise DataError(f"{file}: {error}, so these are no events. Check what wrote it") from error
