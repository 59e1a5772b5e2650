"""A configuration as text and back, and what identifies it."""

import dataclasses
import hashlib
import json
from typing import Any

from jaxrec.config.fields import Config
from jaxrec.errors import ConfigError


def to_json(config: Any) -> str:
    """Canonical JSON of a config (or a part of it): sorted keys, two spaces."""
    return json.dumps(dataclasses.asdict(config), indent=2, sort_keys=True)


def from_json(text: str) -> Config:
    """The inverse of `to_json`; raises ConfigError on an unknown key or a section that is none."""
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"the config is no JSON: {error}") from error
    return build(Config, values, "")


def build(kind: Any, values: Any, prefix: str) -> Any:
    """A dataclass `kind` from nested dicts; prefix names its place in errors.

    Raises ConfigError on an unknown key or a section that is none.
    """
    fields = {f.name: f for f in dataclasses.fields(kind)}
    if not isinstance(values, dict):
        name = prefix.rstrip(".") or "the config"
        raise ConfigError(f"{name}={values!r}: an object with keys {', '.join(fields)} is needed")
    unknown = sorted(set(values) - set(fields))
    if unknown:
        raise ConfigError(f"unknown config key {prefix}{unknown[0]}: known are {', '.join(fields)}")
    built = {}
    for name, value in values.items():
        default = fields[name].default_factory
        nested = default if dataclasses.is_dataclass(default) else None
        if nested is not None:
            value = build(nested, value, f"{prefix}{name}.")
        built[name] = tuple(value) if isinstance(value, list) else value
    return kind(**built)


def digest(*parts: Any) -> str:
    """12 hex digits that identify config parts (dataclasses or JSON values)."""
    plain = [dataclasses.asdict(p) if dataclasses.is_dataclass(p) else p for p in parts]  # type: ignore[arg-type]
    text = json.dumps(plain, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
