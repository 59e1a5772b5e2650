"""`jaxrec states COMMAND`: stores of user states (docs/serving.md)."""

from collections.abc import Sequence

from jaxrec.errors import ConfigError
from jaxrec.serving.arguments import STATES, USAGE
from jaxrec.serving.command import dispatch

PREFIX = "jaxrec states"


def usage() -> str:
    """What --help prints: the commands by their names here."""
    lines = [line for line in USAGE.splitlines() if not line.startswith("  recommend ")]
    text = "\n".join(lines).replace("build-states  ", "build         ")
    return f"    {PREFIX} COMMAND\n\n{text} `jaxrec recommend` reads a store."


def main(argv: Sequence[str]) -> int:
    """`jaxrec states`; returns its exit status."""
    if argv and argv[0] == "recommend":
        raise ConfigError("recommend is a command of its own: jaxrec recommend")
    return dispatch(argv, usage(), PREFIX, STATES)
