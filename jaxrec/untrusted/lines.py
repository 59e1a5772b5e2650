"""Lines of text, of which none decides how much memory is used."""

from collections.abc import Iterator
from typing import IO, AnyStr

from jaxrec.untrusted.json_objects import Refuse

MAX_LINE = 1 << 23  # bytes, or characters, of one line without its end


def bounded(stream: IO[AnyStr], source: str, refuse: Refuse) -> Iterator[AnyStr]:
    """The lines of a stream, with their ends.

    source: names the stream in messages. refuse: makes the error for a line beyond `MAX_LINE`.
    """
    number = 0
    while line := stream.readline(MAX_LINE + 1):
        number += 1
        if len(line) > MAX_LINE and line[-1:] not in (b"\n", "\n"):
            raise refuse(too_long(source, number))
        yield line


def too_long(source: object, number: int) -> str:
    """What is said of line `number`, counted from 1."""
    return (
        f"{source}, line {number}: longer than {MAX_LINE >> 20} MiB, so this is no row of a table. "
        "Check what wrote it"
    )
