"""Digests of files: what their content is, read again only where a file may have changed."""

import contextlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from jaxrec.errors import DataError
from jaxrec.runtime import workdir
from jaxrec.untrusted import json_objects

FILE = "digests.json"
MAX_BYTES = 1 << 28  # of that file
BLOCK = 1 << 22  # bytes that are read at a time
# a file that was written so shortly before it was read may be written again in the same tick of
# its clock: it is read again next time
SETTLED_SECONDS = 2.0

Digest: TypeAlias = Callable[[Path], str]  # of a file's content


def read_digest(file: Path) -> str:
    """32 hex digits of a file's content (XXH3, 128 bits), read from the disk."""
    import xxhash

    digest = xxhash.xxh3_128()
    with file.open("rb") as stream:
        while block := stream.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


class Digests:
    """Digests of files, kept in `digests.json` beside size, inode and times of each.

    A damaged file of digests is no error: what it says is read again.
    """

    def __init__(self, folder: Path) -> None:
        self._file = folder / FILE
        self._known: dict[str, list[int | str]] = {}
        with contextlib.suppress(DataError):  # none yet, or damaged
            content = json_objects.read(self._file, DataError, max_bytes=MAX_BYTES)
            files = json_objects.get(content, "files", dict, str(self._file), DataError)
            if content.get("digest") == _text_digest(files) and all(map(_is_entry, files.values())):
                self._known = files

    def __call__(self, file: Path) -> str:
        """As `read_digest`, from what is kept where the file is the one that was read.

        Raises DataError for a file that changes while it is read.
        """
        name, before = str(file.absolute()), _mark(file)
        known = self._known.get(name)
        if known is not None and known[:-1] == before:
            return str(known[-1])
        began = time.time()
        value = read_digest(file)
        if _mark(file) != before:
            raise DataError(f"{file}: changed while it was read. Start again when it is complete")
        if max(before[2:]) < (began - SETTLED_SECONDS) * 1e9:
            self._known[name] = [*before, value]
        return value

    def save(self) -> None:
        """Keeps the digests; where the folder cannot be written, files are read again next time."""
        content = {"digest": _text_digest(self._known), "files": self._known}
        with contextlib.suppress(OSError):
            workdir.write_text(self._file, json.dumps(content, indent=1))


def _is_entry(value: object) -> bool:
    """Whether a value is a mark and a digest."""
    return isinstance(value, list) and [type(x) for x in value] == [int] * 4 + [str]


def _mark(file: Path) -> list[int]:
    """Size, inode and times of a file: some differ as soon as it is written to."""
    stat = os.stat(file)
    return [stat.st_size, stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns]


def _text_digest(files: dict[str, list[int | str]]) -> str:
    import xxhash

    return xxhash.xxh3_128(json.dumps(files, sort_keys=True).encode()).hexdigest()
