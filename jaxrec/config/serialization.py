"""A configuration as text and back, and the digest that identifies it."""

import dataclasses
import hashlib
import json
from typing import TYPE_CHECKING, Any, TypeVar

from jaxrec.config.fields import Config
from jaxrec.config.option import group_of
from jaxrec.errors import ConfigError
from jaxrec.untrusted import json_objects

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Kind = TypeVar("Kind")


def to_json(config: "DataclassInstance") -> str:
    """Canonical JSON of a configuration, or of a group of it: sorted keys, two spaces."""
    return json.dumps(dataclasses.asdict(config), indent=2, sort_keys=True)


def from_json(text: str) -> Config:
    """The inverse of `to_json`.

    Keys that are missing take their defaults. Raises ConfigError on text that is no JSON object,
    on an unknown key, and on a value where a group of keys is needed.
    """
    return build(Config, json_objects.parse(text, "the config", ConfigError), "")


def build(kind: type[Kind], values: object, prefix: str) -> Kind:
    """An instance of the configuration class `kind` from nested dicts; lists become tuples.

    prefix: dotted path in the whole configuration, for errors. Raises ConfigError on an unknown
    key, and on a value where a group of keys is needed.
    """
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    if not isinstance(values, dict):
        name = prefix.rstrip(".") or "the config"
        raise ConfigError(f"{name}={values!r}: an object with keys {', '.join(fields)} is needed")
    unknown = sorted(set(values) - set(fields))
    if unknown:
        raise ConfigError(f"unknown config key {prefix}{unknown[0]}: known are {', '.join(fields)}")
    converted: dict[str, object] = {}
    for name, value in values.items():
        group = group_of(fields[name])
        if group is not None:
            converted[name] = build(group, value, f"{prefix}{name}.")
        else:
            converted[name] = tuple(value) if isinstance(value, list) else value
    return kind(**converted)


def digest(*values: Any) -> str:
    """12 hex digits that identify configurations, groups of them or JSON values."""
    plain = [
        dataclasses.asdict(value)
        if dataclasses.is_dataclass(value) and not isinstance(value, type)
        else value
        for value in values
    ]
    text = json.dumps(plain, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
