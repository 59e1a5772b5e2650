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

BLOCK = 1 << 23  # bytes that are in memory at a time; a line must end in every block
CHUNK_BLOCKS = 8  # of lines that are read together


def rows_at_once(file: Path, most: int) -> int:
    """How many lines are read together: at most `most`, and no more bytes than some blocks.

    Raises DataError naming the file for a line longer than a block, a `.gz` or `.zst` that unpacks
    to implausibly many bytes, and a damaged one. Lines of `.zst` files are not looked at.
    """
    name = file.name.lower()
    packed = name.endswith(".gz")
    size, plain, lines = file.stat().st_size, 0, most
    try:
        if name.endswith(".zst"):
            check_unpacked(size, zstd.most_bytes(file), "the file")
            return most
        stream = cast("IO[bytes]", gzip.open(file) if packed else file.open("rb"))  # noqa: SIM115
        with stream:
            while block := stream.read(BLOCK):
                plain += len(block)
                if packed:
                    check_unpacked(size, plain, "the file")
                ends = block.count(b"\n")
                if not ends and len(block) == BLOCK:
                    raise DataError(
                        f"{file}: a line is longer than {BLOCK >> 20} MiB, so this is no table of "
                        "rows. Check what wrote it"
                    )
                if len(block) == BLOCK:
                    lines = min(lines, CHUNK_BLOCKS * ends)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{file}: cannot be read, the file is damaged or not what its ending says: {error}"
        ) from error
    return lines


def check_values(file: Path, values: int) -> None:
    """Raises DataError for a parquet file that holds implausibly many values for its size."""
    try:
        check_unpacked(file.stat().st_size, 8 * values, "the file")
    except ValueError as error:
        raise DataError(f"{file}: {error}, so these are no events. Check what wrote it") from error
