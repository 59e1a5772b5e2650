"""Configuration files on the command line of a program that does not use absl flags."""

import importlib.util
import pathlib
from collections.abc import Callable

from jaxrec.config import Config, validate
from jaxrec.errors import ConfigError


def get_config(argument: str, hint: str = "") -> object:
    """What `get_config()` of `FILE.py[:ARGUMENT]` returns; ARGUMENT is passed on as text.

    hint: ends the message where the file is missing. Raises ConfigError when the file or its
    function `get_config` is missing.
    """
    name, _, text = argument.partition(":")
    path = pathlib.Path(name)
    spec = importlib.util.spec_from_file_location(f"_config_{path.stem}", path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise ConfigError(f"--config={path}: not a Python file{hint}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    make: Callable[..., object] | None = getattr(module, "get_config", None)
    if make is None:
        raise ConfigError(f"--config={path}: the file has no function get_config()")
    return make(text) if text else make()


def load(argument: str) -> Config:
    """The validated configuration of a run in `FILE.py[:ARGUMENT]`."""
    config = get_config(argument)
    if not isinstance(config, Config):
        raise ConfigError(f"--config={argument}: get_config returned a {type(config).__name__}")
    return validate(config)
