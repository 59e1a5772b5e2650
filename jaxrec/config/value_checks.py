"""Checks of single keys and values: does the key exist, and are type, choices and bounds kept?"""

import dataclasses
import math
import typing
from typing import Any

from jaxrec.config.fields import Config
from jaxrec.config.option import Bounds, options, unknown_key
from jaxrec.errors import ConfigError

CHOICES: dict[str, tuple[str, ...]] = {
    key: option.choices for key, option in options(Config) if option.choices
}
# inclusive bounds; None: unbounded
BOUNDS: dict[str, Bounds] = {key: option.bounds for key, option in options(Config) if option.bounds}


def lookup(config: object, key: str) -> Any:
    """The value behind a dotted key, `lookup(config, "model.hstu.normalizer")`."""
    for name in key.split("."):
        config = getattr(config, name)
    return config


def check_key(config: object, key: str) -> None:
    """Raises ConfigError unless `key` is a dotted key of `config` that holds a value.

    An unknown key is answered with the known ones, and the closest of them.
    """
    node, walked = config, ""
    for name in key.split("."):
        names = [f.name for f in dataclasses.fields(node)] if dataclasses.is_dataclass(node) else []
        if name not in names:
            raise ConfigError(unknown_key(f"{walked}{name}", names))
        node, walked = getattr(node, name), f"{walked}{name}."
    if dataclasses.is_dataclass(node):
        first = dataclasses.fields(node)[0].name
        raise ConfigError(f"{key} is a group: set one of its keys, such as {key}.{first}")


def check_values(config: Config) -> None:
    """Raises ConfigError for a value of another type, not among its choices or out of bounds."""
    check_types(config, Config(), "")
    for key, allowed in CHOICES.items():
        value = lookup(config, key)
        if value not in allowed:
            raise ConfigError(f"{key}={value!r}: allowed are {', '.join(allowed)}")
    for key, (low, high) in BOUNDS.items():
        value = lookup(config, key)
        below, above = low is not None and value < low, high is not None and value > high
        if below or above or not -math.inf < value < math.inf:
            raise ConfigError(
                f"{key}={value!r}: allowed is {low} to {'any' if high is None else high}"
            )


def check_types(config: object, default: Any, prefix: str) -> None:
    """Raises ConfigError for a value whose type is not its default's (an int may be a float).

    config: instance of a configuration class. default: another instance, whose values have the
    right types. prefix: dotted path of both in the whole configuration, for errors.
    """
    for field in dataclasses.fields(default):
        value, expected = getattr(config, field.name), getattr(default, field.name)
        key, kind = f"{prefix}{field.name}", type(expected)
        if dataclasses.is_dataclass(kind):
            check_types(value, expected, f"{key}.")
        elif kind in (int, float):
            allowed, needed = (int, "an integer") if kind is int else (int | float, "a number")
            if isinstance(value, bool) or not isinstance(value, allowed):
                raise ConfigError(f"{key}={value!r}: {needed} is needed")
        elif not isinstance(value, kind):
            raise ConfigError(f"{key}={value!r}: a {kind.__name__} is needed")


def check_elements(config: object, prefix: str = "") -> None:
    """Raises ConfigError for a list with an element of another type (prefix as above)."""
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):  # type: ignore[arg-type]
        value, key = getattr(config, field.name), f"{prefix}{field.name}"
        if dataclasses.is_dataclass(value):
            check_elements(value, f"{key}.")
        elif isinstance(value, tuple):
            element = typing.get_args(hints[field.name])[0]
            allowed = (int, float) if element is float else element
            wrong = [x for x in value if isinstance(x, bool) or not isinstance(x, allowed)]
            if wrong:
                raise ConfigError(f"{key}={value!r}: {wrong[0]!r} is no {element.__name__}")
