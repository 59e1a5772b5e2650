"""What the recipes in `configs/` share: their arguments, and how their files are read."""

import importlib.util
import pathlib
import types
from collections.abc import Sequence
from typing import Any

from jaxrec.errors import ConfigError, JaxrecError


def recipe_argument(argument: str, allowed: Sequence[str]) -> str:
    """The argument of a recipe, `FILE.py:ARGUMENT`; the first of `allowed` if it is empty.

    Raises ConfigError for an argument that is not allowed.
    """
    argument = argument or allowed[0]
    if argument not in allowed:
        raise ConfigError(f"config argument {argument!r}: allowed are {', '.join(allowed)}")
    return argument


def load_recipe(recipe: str) -> Any:
    """What `get_config` of `FILE.py[:ARGUMENT]` returns, not validated.

    Raises ConfigError for a file that is missing, fails, or has no such function.
    """
    name, colon, argument = recipe.partition(":")
    try:
        get_config = getattr(load_module(name), "get_config", None)
        if get_config is None:
            raise ConfigError(f"--config={name}: the file has no function get_config()")
        return get_config(argument) if colon else get_config()
    except (JaxrecError, OSError):
        raise
    except Exception as error:
        raise ConfigError(f"--config={recipe}: {type(error).__name__}: {error}") from error


def asks_for_advice(recipe: str | None) -> bool:
    """Whether the file of `FILE.py[:ARGUMENT]` leaves the model to its data (`ADVISED = True`)."""
    return recipe is not None and bool(
        getattr(load_module(recipe.partition(":")[0]), "ADVISED", False)
    )


def load_module(name: str) -> types.ModuleType:
    """The module of a recipe's file. Raises ConfigError for a missing one, and what it raises."""
    path = recipe_file(name)
    spec = importlib.util.spec_from_file_location(f"_recipe_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def recipe_file(name: str) -> pathlib.Path:
    """The path of a recipe; raises ConfigError for a missing one.

    The message lists the recipes beside it, or those of `configs/` for a name without a folder.
    """
    path = pathlib.Path(name)
    if path.is_file() and path.suffix == ".py":
        return path
    folder = path.parent if path.parent.name else pathlib.Path("configs")
    known = sorted(str(file) for file in folder.glob("*.py") if not file.stem.startswith("_"))
    listed = f"; there are {', '.join(known)}" if known else ""
    raise ConfigError(f"--config={name}: not a Python file{listed}")
