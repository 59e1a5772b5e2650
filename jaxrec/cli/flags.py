"""The flags of commands that take a recipe: --config, its keys, --workdir, and --help.

    jaxrec train --config=configs/x.py[:argument] --config.train.steps=100 --workdir=runs/x

Flags are absl's and ml_collections'; a mistake in them is a ConfigError of one line. Nothing here
imports jax, so that --help answers at once.
"""

import dataclasses
import difflib
import pathlib
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, TypeAlias

from jaxrec.config import Config, asks_for_advice, check_key, lookup, validate
from jaxrec.config.option import Option, group_of, option_of, options
from jaxrec.config.recipe import load_recipe, recipe_file
from jaxrec.errors import ConfigError, WorkdirError
from jaxrec.runtime.program import nearest

Advice: TypeAlias = Literal["data", "run", "none"]
Define: TypeAlias = Callable[[Any], None]  # gets absl's FlagValues and adds flags to them

_NO_WORKDIR = "--workdir=FOLDER is needed: where the run lives, see --help"
_HELP = ("-h", "--help", "--helpshort", "--helpfull")
# what Python and absl say of a value of another type -> what to give instead
_WRONG_TYPE = {
    r"invalid literal for int\(\)": "an integer",
    "could not convert string to float": "a number",
    r"\('Non-boolean argument": "True or False",
}


def call(
    main: Callable[[Any], int | None],
    usage: str | None,
    argv: Sequence[str],
    *,
    define: Define | None = None,
    recorded: bool = False,
    advice: Advice = "data",
) -> int:
    """Parses a command line and calls `main(flags)`; returns its exit status, 0 for None.

    main: gets absl's flags, `config` (validated) and `workdir` among them. usage: the command's
    docstring, shown by --help above the configuration keys, before anything slow is imported.
    argv, define, recorded, advice: as in `parse`. Raises JaxrecError, OSError.
    """
    if set(argv).intersection(_HELP):
        print(f"{(usage or '').strip()}\n\n{describe(_recipe(argv))}")
        return 0
    return main(parse(argv, define, recorded=recorded, advice=advice)) or 0


def parse(
    argv: Sequence[str],
    define: Define | None = None,
    *,
    recorded: bool = False,
    advice: Advice = "data",
) -> Any:
    """absl's flags with `config` and `workdir` read.

    argv: without the program. define: adds flags of the command (absl's `flag_values`). recorded:
    without --config the configuration is that of the run in --workdir. advice: what fills a recipe
    that asks for advice (see `jaxrec.data.advised`; none: it stays). Raises ConfigError, DataError,
    and WorkdirError for a folder without a run.
    """
    from absl import flags
    from ml_collections import config_flags

    values, line = flags.FlagValues(), ["jaxrec", *_without(argv, "config")]
    flags.DEFINE_string("workdir", None, "folder of the run", flag_values=values)
    if define is not None:
        define(values)
    check_overrides(argv, [*values, "config"], recorded=recorded)
    recipe = _recipe(argv)
    config = _load(recipe) if recipe is not None else _of_run(_last(argv, "workdir"))
    _check_class(config)
    try:
        config_flags.DEFINE_config_dataclass("config", config, flag_values=values, sys_argv=line)
        unparsed = values(line)[1:]
    except flags.Error as error:
        raise ConfigError(_reason(str(error))) from error
    if unparsed:
        raise ConfigError(f"unexpected argument {unparsed[0]!r}: see --help")
    if not values.workdir:
        raise ConfigError(_NO_WORKDIR)
    if pathlib.Path(values.workdir).is_file():
        raise ConfigError(f"--workdir={values.workdir}: a file; name a folder")
    validate(values.config)
    if advice != "none" and asks_for_advice(recipe):
        from jaxrec.data import advised  # slow

        given = config_flags.get_override_values(values["config"])
        advised.fill(values.config, given, pathlib.Path(values.workdir), source=advice)
    return values


def _of_run(folder: str | None) -> Config:
    """The configuration that a run recorded. Raises ConfigError, WorkdirError."""
    from jaxrec.runtime import workdir

    if not folder:
        raise ConfigError(_NO_WORKDIR)
    if not pathlib.Path(folder).is_dir():
        raise WorkdirError(f"{folder}: no such run; train it first, or name its folder")
    return workdir.load_config(pathlib.Path(folder))


def check_overrides(
    arguments: Sequence[str],
    known: Sequence[str] = ("config", "workdir"),
    *,
    recorded: bool = False,
) -> None:
    """Raises ConfigError for a missing recipe, and for a flag or key that is not there.

    known: names of the flags. recorded: the recipe may be left out.
    """
    recipe = _recipe(arguments)
    if recipe is None and not recorded:
        raise ConfigError("--config=FILE.py is needed, for example --config=configs/quickstart.py")
    if recipe is not None:
        recipe_file(recipe.partition(":")[0])
    for argument in arguments:
        if argument == "--":
            return
        match = re.match(r"--?(?:no)?config\.([^=\[]+)", argument)
        if match:
            check_key(Config(), match[1])
        elif match := re.match(r"--?([A-Za-z][\w.-]*)", argument):
            name = match[1]
            if name not in known and name.removeprefix("no") not in known:
                raise ConfigError(f"unknown flag --{name}{_advice(name, known)}")


def _advice(name: str, known: Sequence[str]) -> str:
    """What a flag that is not there was meant to be."""
    keys = [key for key, _ in options(Config)]
    meant = [key for key in keys if name in (key, key.rpartition(".")[2])]
    if not meant and (flag := nearest(name, [f"--{flag}" for flag in known])):
        return flag
    if not meant:  # a key that is spelt almost so
        endings = {key.rpartition(".")[2]: key for key in keys}
        meant = [endings[near] for near in difflib.get_close_matches(name, endings, 1)]
    if not meant:
        return ": see --help"
    return f": did you mean {' or '.join(f'--config.{key}' for key in meant)}?"


def describe(recipe: str | None = None) -> str:
    """Every configuration key with its value, what it means and what is allowed, by group.

    recipe: `FILE.py[:ARGUMENT]`, whose values are shown; default: the defaults. Raises
    ConfigError for a recipe that cannot be read.
    """
    config = Config()
    title = "Configuration keys and their defaults:"
    if recipe is not None:
        config = _load(recipe)
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
    return _last(arguments, "config")


def _last(arguments: Sequence[str], flag: str) -> str | None:
    """The value of the last --flag; None without one."""
    pattern = re.compile(rf"--?{flag}=(.*)", re.DOTALL)
    found = [m[1] for a in arguments if (m := pattern.fullmatch(a))]
    if f"--{flag}" in arguments[:-1]:
        found.append(arguments[list(arguments).index(f"--{flag}") + 1])
    return found[-1] if found else None


def _without(arguments: Sequence[str], flag: str) -> list[str]:
    """The arguments without --flag and its value."""
    kept, skip = [], False
    for argument in arguments:
        if not skip and not re.match(rf"--?{flag}(=|$)", argument):
            kept.append(argument)
        skip = not skip and argument in (f"--{flag}", f"-{flag}")
    return kept


def _load(recipe: str) -> Any:
    """What `get_config` of a recipe returns; the recipe may import others beside it.

    A console script finds no modules in the working directory, as `python FILE` and `python -m` do.
    """
    for place in (pathlib.Path.cwd(), recipe_file(recipe.partition(":")[0]).resolve().parents[1]):
        if str(place) not in sys.path:
            sys.path.append(str(place))
    return load_recipe(recipe)


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
