"""One key of a configuration: its default, what it means and which values it may have.

Description, choices and bounds are metadata of the dataclass field, so that a key, its help and
its check stand in one place:

    width: int = option(64, "D, width of the encoder.", low=1)
"""

import dataclasses
import difflib
from collections.abc import Iterator, Sequence
from typing import TypeVar

from jaxrec.errors import ConfigError

Value = TypeVar("Value")
Bounds = tuple[float | None, float | None]

_KEY = "option"  # of a field's metadata


class Group:
    """A group of keys: setting what is no key is refused, as it is on the command line."""

    def __setattr__(self, name: str, value: object) -> None:
        """Raises ConfigError for an unknown key."""
        names = [field.name for field in dataclasses.fields(self)]  # type: ignore[arg-type]
        if name not in names:
            raise ConfigError(unknown_key(f"{_path(type(self))}{name}", names))
        object.__setattr__(self, name, value)


def unknown_key(key: str, names: Sequence[str]) -> str:
    """The message for a dotted key whose last part is none of the `names` of its group."""
    walked, _, name = key.rpartition(".")
    close = difflib.get_close_matches(name, names, 1)
    hint = f" Did you mean {walked}{'.' if walked else ''}{close[0]}?" if close else ""
    known = f"known are {', '.join(names)}" if names else f"{walked} is one value"
    return f"unknown config key {key}: {known}.{hint}"


def _path(kind: type) -> str:
    """Where a class of keys stands in a configuration: `model.hstu.`; empty at the top."""
    for parent in Group.__subclasses__():
        for field in dataclasses.fields(parent):  # type: ignore[arg-type]
            if group_of(field) is kind:
                return f"{_path(parent)}{field.name}."
    return ""


@dataclasses.dataclass(frozen=True)
class Option:
    """Everything about a key except its type and default.

    description: one line: meaning, unit, special values. choices: allowed values; () for
    any value. low, high: inclusive bounds of a number; None: unbounded.
    """

    description: str
    choices: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None

    @property
    def bounds(self) -> Bounds | None:
        """(low, high); None for a key without bounds."""
        return None if self.low is None and self.high is None else (self.low, self.high)

    @property
    def allowed(self) -> str:
        """Choices or bounds for --help; empty for a key that has neither."""
        if self.choices:
            return " | ".join(choice or "''" for choice in self.choices)
        if self.high is not None:
            return f"{self.low} to {self.high}"
        return "" if self.low is None else f">= {self.low}"


def option(
    default: Value,
    description: str,
    *,
    choices: tuple[str, ...] = (),
    low: float | None = None,
    high: float | None = None,
) -> Value:
    """The field of a configuration key; see `Option`.

    Returns what `dataclasses.field` returns; typed as the default, as that function is.
    """
    known = Option(description, choices, low, high)
    return dataclasses.field(default=default, metadata={_KEY: known})


def options(kind: type, prefix: str = "") -> Iterator[tuple[str, Option]]:
    """(dotted key, option) of every key of a configuration class, those of its groups included."""
    for field in dataclasses.fields(kind):
        group = group_of(field)
        if group is not None:
            yield from options(group, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", option_of(field)


def option_of(field: dataclasses.Field[object]) -> Option:
    """The `Option` of a field; one without a description if it was not declared by `option`."""
    known = field.metadata.get(_KEY)
    return known if isinstance(known, Option) else Option("")


def group_of(field: dataclasses.Field[object]) -> type | None:
    """The class of a field that is a group of keys; None for a field that holds a value."""
    factory = field.default_factory
    return factory if isinstance(factory, type) and dataclasses.is_dataclass(factory) else None
