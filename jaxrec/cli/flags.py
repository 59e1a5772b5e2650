"""The command line of `train.py` and `eval.py`: flags, help, readable errors.

    python train.py --config=configs/x.py[:argument] --config.train.steps=100 --workdir=runs/x

Flags are absl's and ml_collections'; a mistake in them, in the data or in the folder ends the
program with one line and exit status 2 instead of a traceback. Nothing here imports jax, so that
--help answers at once.
"""

import dataclasses
import pathlib
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

from jaxrec.config import Config, check_key, lookup, validate
from jaxrec.config.option import Option, group_of, option_of
from jaxrec.config.recipe import load_recipe, recipe_file
from jaxrec.errors import ConfigError, JaxrecError

_HELP = ("-h", "--help", "--helpshort", "--helpfull")
# what Python and absl say of a value of another type -> what to give instead
_WRONG_TYPE = {
    r"invalid literal for int\(\)": "an integer",
    "could not convert string to float": "a number",
    r"\('Non-boolean argument": "True or False",
}


def run(
    main: Callable[[Any], None], usage: str | None, argv: Sequence[str] | None = None
) -> NoReturn:
    """Parses the command line, calls `main(flags)` and exits.

    main: gets absl's flags, `config` (validated) and `workdir` among them. usage: the program's
    docstring, shown by --help above the configuration keys. argv: default `sys.argv`. Exit
    status: 0, 2 after an error that names what to change, 130 after Ctrl-C.
    """
    argv = sys.argv if argv is None else list(argv)
    help_if_asked(usage, argv)
    try:
        main(parse(argv))
    except (JaxrecError, OSError) as error:
        _fail(argv, error)
    except KeyboardInterrupt:
        print(f"{_program(argv)}: interrupted", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    sys.exit(0)


def help_if_asked(usage: str | None, argv: Sequence[str] | None = None) -> None:
    """Prints --help and exits, if the command line asks for it.

    Programs call it before they import what takes seconds. usage, argv: as in `run`.
    """
    argv = sys.argv if argv is None else argv
    if not set(argv[1:]).intersection(_HELP):
        return
    try:
        print(f"{(usage or '').strip()}\n\n{describe(_recipe(argv[1:]))}")
    except (JaxrecError, OSError) as error:
        _fail(argv, error)
    sys.exit(0)


def parse(argv: Sequence[str]) -> Any:
    """absl's flags with `config` and `workdir` read. Raises ConfigError."""
    from absl import flags
    from ml_collections import config_flags

    check_overrides(argv[1:])
    config_flags.DEFINE_config_file("config", None, "recipe")
    flags.DEFINE_string("workdir", None, "folder of the run")
    try:
        unparsed = flags.FLAGS(list(argv))[1:]
        config = flags.FLAGS.config
    except flags.Error as error:
        raise ConfigError(_reason(str(error))) from error
    except AttributeError as error:
        if "no attribute 'get_config'" not in str(error):
            raise
        raise ConfigError(
            "--config: the file has no function get_config(), see configs/"
        ) from error
    if unparsed:
        raise ConfigError(f"unexpected argument {unparsed[0]!r}: see --help")
    _check_class(config)
    if not flags.FLAGS.workdir:
        raise ConfigError("--workdir=FOLDER is needed: where the run lives, see --help")
    validate(config)
    return flags.FLAGS


def check_overrides(arguments: Sequence[str]) -> None:
    """Raises ConfigError for a missing config file or an override of a key that is not there."""
    recipe = _recipe(arguments)
    if recipe is None:
        raise ConfigError("--config=FILE.py is needed, for example --config=configs/quickstart.py")
    recipe_file(recipe.partition(":")[0])
    for argument in arguments:
        match = re.match(r"--?(?:no)?config\.([^=\[]+)", argument)
        if match:
            check_key(Config(), match[1])


def describe(recipe: str | None = None) -> str:
    """Every configuration key with its value, what it means and what is allowed, by group.

    recipe: `FILE.py[:ARGUMENT]`, whose values are shown; default: the defaults. Raises
    ConfigError for a recipe that cannot be read.
    """
    config = Config()
    title = "Configuration keys and their defaults:"
    if recipe is not None:
        config = load_recipe(recipe)
        _check_class(config)
        title = f"Configuration keys and their values in {recipe} (*: not the default):"
    return "\n".join([title, *_describe(Config, "", config)])


def _describe(group: type, prefix: str, config: Config) -> Iterator[str]:
    """Lines of a group: its summary, its own keys, then the groups inside of it."""
    summary = (group.__doc__ or "").partition("\n")[0]
    yield f"\n{prefix.rstrip('.')}: {summary}" if prefix else ""
    nested = {}
    for field in dataclasses.fields(group):
        key, inner = f"{prefix}{field.name}", group_of(field)
        if inner is not None:
            nested[f"{key}."] = inner
        else:
            yield _line(key, option_of(field), lookup(config, key), lookup(Config(), key))
    for inner_prefix, inner in nested.items():
        yield from _describe(inner, inner_prefix, config)


def _line(key: str, option: Option, value: object, default: object) -> str:
    changed = value != default
    notes = [option.allowed, f"default {default!r}" if changed else ""]
    note = "; ".join(filter(None, notes))
    mark, setting = "*" if changed else " ", f"--config.{key}={value!r}"
    return f"{mark} {setting:<44} {option.description}" + (f" [{note}]" if note else "")


def _recipe(arguments: Sequence[str]) -> str | None:
    """The value of the last --config; None without one."""
    recipes = [m[1] for a in arguments if (m := re.fullmatch(r"--?config=(.*)", a, re.DOTALL))]
    if "--config" in arguments[:-1]:
        recipes.append(arguments[list(arguments).index("--config") + 1])
    return recipes[-1] if recipes else None


def _check_class(config: object) -> None:
    if not isinstance(config, Config):
        raise ConfigError(
            f"--config: get_config returned a {type(config).__name__}, not a jaxrec Config"
        )


def _reason(text: str) -> str:
    """The message at the bottom of an absl flag error, without traceback and class name."""
    text = text.removesuffix("Pass --helpshort or --helpfull to see help on flags.").strip()
    if "Traceback" in text:
        text = text.splitlines()[-1].strip()
        text = re.sub(r"^[\w.]+(?:Error|Exception): ", "", text)
    text = re.sub(r"^flag (--[\w.]+=)", r"\1", text)
    for pattern, needed in _WRONG_TYPE.items():
        text = re.sub(rf": {pattern}.*", f": {needed} is needed", text)
    return text


def _fail(argv: Sequence[str], error: Exception) -> NoReturn:
    print(f"{_program(argv)}: error: {error}", file=sys.stderr)
    sys.exit(2)


def _program(argv: Sequence[str]) -> str:
    return pathlib.Path(argv[0]).name
