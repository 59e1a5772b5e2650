"""The command line of `train.py` and `eval.py`: flags, help, readable errors.

    python train.py --config=configs/x.py[:argument] --config.train.steps=100 --workdir=runs/x

Flags are absl's and ml_collections'; a mistake in them, in the data or in the folder ends the
program with one line and exit status 2 instead of a traceback.
"""

import dataclasses
import difflib
import inspect
import pathlib
import re
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from jaxrec import config as config_lib
from jaxrec.config import Config
from jaxrec.errors import (
    ConfigError,
    JaxrecError,
)


def run(main: Callable[[Any], Any], usage: str, argv: Sequence[str] | None = None) -> NoReturn:
    """Parses the command line, calls `main(flags)` and exits.

    main: gets absl's flags, `config` (validated) and `workdir` among them. usage: shown by
    --help above the list of configuration keys. Exit status: 0, 2 after an error that names
    what to change, 130 after Ctrl-C.
    """
    argv = sys.argv if argv is None else list(argv)
    program = pathlib.Path(argv[0]).name
    if any(argument in ("-h", "--help", "--helpshort", "--helpfull") for argument in argv[1:]):
        print(f"{usage.strip()}\n\nConfiguration keys, their defaults and meaning:\n{describe()}")
        sys.exit(0)
    try:
        main(parse(argv))
    except (JaxrecError, OSError) as error:
        print(f"{program}: error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    sys.exit(0)


def parse(argv: Sequence[str]) -> Any:
    """absl's flags with `config` and `workdir` read. Raises ConfigError."""
    from absl import flags
    from ml_collections import config_flags

    check_overrides(argv[1:])
    config_flags.DEFINE_config_file("config", None, "recipe")
    flags.DEFINE_string("workdir", None, "folder of the run")
    try:
        rest = flags.FLAGS(list(argv))[1:]
        config = flags.FLAGS.config
    except flags.Error as error:
        raise ConfigError(_reason(str(error))) from error
    except AttributeError as error:
        if "no attribute 'get_config'" not in str(error):
            raise
        raise ConfigError(
            "--config: the file has no function get_config(), see configs/"
        ) from error
    if rest:
        raise ConfigError(f"unexpected argument {rest[0]!r}: see --help")
    if not isinstance(config, Config):
        raise ConfigError(
            f"--config: get_config returned a {type(config).__name__}, not a jaxrec Config"
        )
    if not flags.FLAGS.workdir:
        raise ConfigError("--workdir=FOLDER is needed: where the run lives, see --help")
    config_lib.validate(config)
    return flags.FLAGS


def check_overrides(arguments: Sequence[str]) -> None:
    """Raises ConfigError for a missing config file or an override of a key that is not there."""
    files = [m[1] for a in arguments if (m := re.fullmatch(r"--?config=(.*)", a, re.DOTALL))]
    if "--config" in arguments[:-1]:
        files.append(arguments[list(arguments).index("--config") + 1])
    if not files:
        raise ConfigError("--config=FILE.py is needed, for example --config=configs/quickstart.py")
    path = pathlib.Path(files[-1].partition(":")[0])
    if not path.is_file() or path.suffix != ".py":
        known = sorted(str(p) for p in path.parent.glob("*.py") if not p.name.startswith("_"))
        here = f"; there are {', '.join(known)}" if known else ""
        raise ConfigError(f"--config={path}: not a Python file{here}")
    for argument in arguments:
        match = re.match(r"--?(?:no)?config\.([^=\[]+)", argument)
        if match:
            _check_key(match[1])


def _check_key(key: str) -> None:
    """Walks the dataclasses along a dotted key."""
    node, walked = config_lib.Config(), ""
    for part in key.split("."):
        names = [f.name for f in dataclasses.fields(node)] if dataclasses.is_dataclass(node) else []
        if part not in names:
            close = difflib.get_close_matches(part, names, 1)
            hint = f" Did you mean {walked}{close[0]}?" if close else ""
            known = f"known are {', '.join(names)}" if names else f"{walked[:-1]} is a single value"
            raise ConfigError(f"unknown config key {walked}{part}: {known}.{hint}")
        node, walked = getattr(node, part), f"{walked}{part}."
    if dataclasses.is_dataclass(node):
        first = dataclasses.fields(node)[0].name
        raise ConfigError(f"{key} is a group: set one of its keys, such as {key}.{first}")


def _reason(text: str) -> str:
    """The message at the bottom of an absl flag error, without traceback and class name."""
    text = text.removesuffix("Pass --helpshort or --helpfull to see help on flags.").strip()
    if "Traceback" in text:
        text = text.splitlines()[-1].strip()
        text = re.sub(r"^[\w.]+(?:Error|Exception): ", "", text)
    return re.sub(r"^flag (--[\w.]+=)", r"\1", text)


def describe() -> str:
    """Every configuration key with its default and what it means, from the source."""
    return "\n".join(_describe(Config(), ""))


def _describe(node: Any, prefix: str) -> list[str]:
    comments = dict(re.findall(r"^    (\w+): [^#\n]*# (.*)$", inspect.getsource(type(node)), re.M))
    lines = []
    for field in dataclasses.fields(node):
        key, value = f"{prefix}{field.name}", getattr(node, field.name)
        if dataclasses.is_dataclass(value):
            lines += _describe(value, f"{key}.")
            continue
        choices = " | ".join(config_lib.CHOICES.get(key, ()))
        meaning = comments.get(field.name, choices)
        lines.append(f"  {f'--config.{key}={value!r}':<44} {meaning}".rstrip())
    return lines
