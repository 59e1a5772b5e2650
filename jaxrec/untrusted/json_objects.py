"""JSON objects with a bound on their size and depth, and typed access to their values."""

import contextlib
import json
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, TypeVar

from jaxrec.errors import JaxrecError

if TYPE_CHECKING:
    from jaxrec.types import Json

MAX_BYTES = 1 << 24  # of a settings or record file; those that hold ids or texts are given more
MAX_DEPTH = 64  # of objects and lists in each other
_SHOWN = 60  # characters of a value in a message

# what code raises that meets a value of another type, or a key that is not there
_ODD = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)

Value = TypeVar("Value")
# a whole line -> the error to raise
Refuse = Callable[[str], JaxrecError]


def read(file: Path, refuse: Refuse, *, max_bytes: int = MAX_BYTES) -> "Json":
    """The JSON object in a file.

    refuse: what makes an error of a message, which names the file and what is wrong with it.
    max_bytes: larger files are refused unread. Raises that error for a file that is missing, too
    large, no JSON in UTF-8, nested deeper than `MAX_DEPTH`, or no object.
    """
    return parse(read_bytes(file, refuse, max_bytes=max_bytes), str(file), refuse)


def read_bytes(file: Path, refuse: Refuse, *, max_bytes: int) -> bytes:
    """The content of a file; `refuse` as in `read` for one that is missing or too large."""
    try:
        with file.open("rb") as stream:
            content = stream.read(max_bytes + 1)
    except OSError as error:
        raise refuse(f"{file}: cannot be read: {error.strerror or error}") from error
    if len(content) > max_bytes:
        raise refuse(f"{file}: damaged: more than {max_bytes:,} bytes, which no such file has")
    return content


def parse(content: bytes | str, where: str, refuse: Refuse) -> "Json":
    """The JSON object in a text; where: the file, for messages. Raises as `read`."""
    value = parse_value(content, where, refuse)
    if not isinstance(value, dict):
        raise refuse(f"{where}: damaged: a JSON object is needed, found {_kind(value)}")
    return value


def parse_value(content: bytes | str, where: str, refuse: Refuse) -> Any:
    """Any JSON value, as `parse`."""
    try:
        text = content.decode() if isinstance(content, bytes) else content
        value = json.loads(text)
    except (ValueError, RecursionError, MemoryError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else error
        raise refuse(f"{where}: damaged: no JSON ({reason})") from error
    # so few brackets cannot nest deeper: texts with long lists of ids are not walked through
    if text.count("[") + text.count("{") > MAX_DEPTH and _depth(value) > MAX_DEPTH:
        raise refuse(f"{where}: damaged: values are nested deeper than {MAX_DEPTH}")
    return value


@contextlib.contextmanager
def taken_apart(where: object, refuse: Refuse) -> Iterator[None]:
    """Around code that takes the values of a file apart and trusts their types and keys.

    where: the file, for messages. Raises the error of `refuse` for what such code raises.
    """
    try:
        yield
    except JaxrecError:
        raise
    except _ODD as error:
        lines = str(error).splitlines()
        reason = f"{type(error).__name__}: {lines[0][:_SHOWN]}" if lines else type(error).__name__
        raise refuse(f"{where}: damaged: not the values that such a file has ({reason})") from error


def get(
    values: "Json", key: str, kind: type[Value], where: str, refuse: Refuse, *default: Value
) -> Value:
    """The value of a key, of type `kind` (an int may stand for a float, a bool for neither).

    default: the value of a missing key, which is an error without one.
    """
    if key not in values and default:
        return default[0]
    if key not in values:
        raise refuse(f"{where}: damaged: {key} is missing")
    return check(values[key], kind, f"{where}: damaged: {key}", refuse)


def check(value: object, kind: type[Value], where: str, refuse: Refuse) -> Value:
    """`value`, if it is of type `kind`, else an error."""
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            value = float(value)
        except OverflowError:
            value = math.inf
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise refuse(f"{where}={shown(value)}: {_NAMES.get(kind, kind.__name__)} is needed")
    return value


def size(
    values: "Json", key: str, where: str, refuse: Refuse, *default: int, low: int = 0, high: int
) -> int:
    """An integer from `low` to `high`: what a file declares and memory is allocated by."""
    number = get(values, key, int, where, refuse, *default)
    if not low <= number <= high:
        raise refuse(f"{where}: damaged: {key}={shown(number)}: allowed is {low} to {high}")
    return number


def texts(values: Iterable[object], where: str, refuse: Refuse) -> list[str]:
    """The values as a list, if all of them are text."""
    return [check(value, str, where, refuse) for value in values]


def inside(name: object, where: str, refuse: Refuse) -> str:
    """A path below the folder of the file that names it: relative, without `..`, and text."""
    text = check(name, str, f"{where}: damaged: a name of a file", refuse)
    parts = PurePosixPath(text).parts
    if not parts or text.startswith("/") or ".." in parts or "\\" in text or "\0" in text:
        raise refuse(f"{where}: damaged: names {shown(text)}, which is not in its folder")
    return text


def shown(value: object) -> str:
    """A value in a message: on one line, and short whatever it is."""
    if isinstance(value, int) and abs(value) >= 10**_SHOWN:
        return "a number of more than 60 digits"
    text = _kind(value) if isinstance(value, dict | list) else repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


_NAMES = {
    int: "an integer",
    float: "a number",
    str: "a text",
    bool: "true or false",
    dict: "an object",
    list: "a list",
}


def _kind(value: object) -> str:
    return "null" if value is None else _NAMES.get(type(value), type(value).__name__)


def _depth(value: object) -> int:
    """How deep containers stand in each other, at most one more than `MAX_DEPTH`."""
    level: list[Any] = [value]
    depth = 0
    while depth <= MAX_DEPTH:
        level = [x for x in level if isinstance(x, dict | list)]
        if not level:
            break
        level = [x for c in level for x in (c.values() if isinstance(c, dict) else c)]
        depth += 1
    return depth
