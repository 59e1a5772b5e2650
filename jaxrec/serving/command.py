"""The command lines of user states: flags, one job, and errors as one line."""

import argparse
from collections.abc import Sequence

from jaxrec.errors import ConfigError, DataError
from jaxrec.runtime.program import exit_status, nearest
from jaxrec.serving.arguments import USAGE, parsers
from jaxrec.serving.jobs import JOBS

HELP = ("-h", "--help")
PLACES = {"workdir": "--workdir", "store": "--store", "old": "--from", "snapshot": "--snapshot"}


def run(argv: Sequence[str] | None = None) -> int:
    """`python -m jaxrec.serving`; returns its exit status.

    Status: 0, 1 when `verify` fails, 2 after an error that names what to change.
    """
    return exit_status("jaxrec.serving", main, argv)


def main(argv: Sequence[str]) -> int:
    """Runs the command that `argv` begins with; raises JaxrecError, OSError, Failure."""
    return dispatch(argv, USAGE, "python -m jaxrec.serving")


def dispatch(
    argv: Sequence[str], usage: str, prefix: str, names: dict[str, str] | None = None
) -> int:
    """Runs one of several commands. usage: what --help prints. prefix, names: as in `parsers`."""
    if not argv or argv[0] in HELP:
        print(usage)
        return 0 if argv else 2
    known = parsers(prefix, names)
    if argv[0] not in known:
        hint = nearest(argv[0], known) or f": there are {', '.join(known)}"
        raise ConfigError(f"unknown command {argv[0]!r}{hint}")
    parser = known[argv[0]]
    return work(parser.parse_args(argv[1:]))


def work(args: argparse.Namespace) -> int:
    """Does the job of parsed flags; returns 0. What a caller of `Recommender` gets as ValueError
    is a mistake of the user here, a DataError.
    """
    for name, flag in PLACES.items():
        if getattr(args, name, None) == "":  # known before anything is read
            raise ConfigError(f"{flag}= is empty: name a place")
    try:
        JOBS[args.command](args)
    except (ValueError, TypeError) as error:
        if isinstance(error, DataError | ConfigError) or "jaxrec" not in (_origin(error) or ""):
            raise
        raise DataError(str(error)) from error
    return 0


def _origin(error: BaseException) -> str | None:
    """File that raised."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return None if trace is None else trace.tb_frame.f_code.co_filename
