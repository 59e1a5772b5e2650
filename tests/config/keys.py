"""Every key of the configuration with its default, and how tests change one."""

import dataclasses

import pytest

from jaxrec import config as configs
from jaxrec.config import Config
from jaxrec.errors import ConfigError


def put(config, key, value):
    """Sets the field behind a dotted key."""
    *path, name = key.split(".")
    for group in path:
        config = getattr(config, group)
    assert hasattr(config, name), key
    setattr(config, name, value)


def leaves(config, prefix=""):
    """(dotted key, default) of every field."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from leaves(value, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", value


DEFAULTS = dict(leaves(Config()))


def refused(key, value, *words, config=None):
    """`validate` refuses the value with a message that names key, value and `words`."""
    config = config or Config()
    put(config, key, value)
    with pytest.raises(ConfigError) as error:
        configs.validate(config)
    message = str(error.value)
    for word in (key, repr(value), *words):
        assert word in message, message
