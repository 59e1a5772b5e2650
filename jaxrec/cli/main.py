"""`jaxrec COMMAND`: one program for everything that is done with a run.

A command is a module `jaxrec.cli.<name>` with `main(argv) -> int`: it gets the arguments behind the
command, returns the exit status, and raises JaxrecError or OSError for what the user can mend.
Modules are imported when their command is called, and import jax behind `--help`.
"""

import importlib
from collections.abc import Sequence
from typing import NamedTuple

from jaxrec.errors import ConfigError
from jaxrec.runtime.program import exit_status, nearest

HELP = ("-h", "--help", "help")


class Command(NamedTuple):
    """module: of its `main`. summary: a line for --help."""

    module: str
    summary: str


COMMANDS = {
    "train": Command("jaxrec.cli.train", "train a recommender, evaluate it, print the table"),
    "evaluate": Command("jaxrec.cli.evaluate", "evaluate a run on its held-out events"),
    "savings": Command("jaxrec.cli.savings", "is compressing histories worth it on my data?"),
    "describe": Command("jaxrec.cli.describe", "describe a data set and what to mind about it"),
    "prepare": Command("jaxrec.cli.prepare", "prepare a data set, as training would"),
    "tune": Command("jaxrec.cli.tune", "search for better settings"),
    "compare": Command("jaxrec.cli.compare", "is one run better than another?"),
    "report": Command("jaxrec.cli.report", "print results of evaluations again"),
    "states": Command("jaxrec.cli.states", "build, extend, check and copy stores of user states"),
    "recommend": Command("jaxrec.cli.recommend", "the best next items of users, to a file"),
    "serve": Command("jaxrec.cli.serve", "answer requests over HTTP"),
}

USAGE = """Sequential recommendation over lifelong user histories.

    jaxrec train --config=configs/table.py:events.parquet --workdir=runs/mine
    jaxrec evaluate --workdir=runs/mine
    jaxrec states build --workdir=runs/mine --store=states
    jaxrec recommend --workdir=runs/mine --store=states --all-users --output=lists.csv

{commands}

`jaxrec COMMAND --help` lists the flags of a command. Exit status: 0; 1 where the answer is no;
2 after a mistake, which is named in one line; 130 after Ctrl-C. JAX_PLATFORMS=cpu, cuda or tpu
picks the devices."""


def usage() -> str:
    """What `jaxrec --help` prints."""
    lines = [f"  {name:<10} {command.summary}" for name, command in COMMANDS.items()]
    return USAGE.format(commands="\n".join(lines))


def dispatch(argv: Sequence[str]) -> int:
    """Calls the command that `argv` begins with; returns the exit status.

    Raises ConfigError for one that is not there.
    """
    if not argv or argv[0] in HELP:
        print(usage())
        return 0 if argv else 2
    if argv[0] == "--version":
        from importlib.metadata import version

        print(f"jaxrec {version('jaxrec')}")
        return 0
    name, rest = argv[0], argv[1:]
    if name not in COMMANDS:
        what = "flag" if name.startswith("-") else "command"
        hint = nearest(name, COMMANDS) or f": there are {', '.join(COMMANDS)}"
        raise ConfigError(f"unknown {what} {name!r}{hint}")

    def main(arguments: Sequence[str]) -> int:
        status: int = importlib.import_module(COMMANDS[name].module).main(arguments)
        return status

    return exit_status(f"jaxrec {name}", main, rest)


def run(argv: Sequence[str] | None = None) -> int:
    """The console script `jaxrec`; returns its exit status. argv: default `sys.argv[1:]`."""
    return exit_status("jaxrec", dispatch, argv)
