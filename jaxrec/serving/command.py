"""The command line `python -m jaxrec.serving`: flags, one job, and errors as one line."""

import os
import signal
import sys
from collections.abc import Sequence

from jaxrec.errors import JaxrecError
from jaxrec.serving.arguments import parser
from jaxrec.serving.jobs import JOBS, Failure

# packages that some subcommands need -> the extra that brings them
EXTRAS = {"flatbuffers": "export", "polars": "data", "tensorflow_datasets": "data"}


def run(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0, 1 when `verify` fails, 2 after an error that names what to change.

    Errors whose message says what to do are printed; anything else is a bug and keeps its
    traceback.
    """
    args = parser().parse_args(argv)
    try:
        JOBS[args.command](args)
    except Failure as failure:
        print(f"{args.command}: {failure}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (JaxrecError, OSError) as error:
        print(f"{args.command}: error: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        extra = EXTRAS.get(error.name or "")
        if extra is None:
            raise
        print(
            f"{args.command}: error: {error.name} is not installed: pip install 'jaxrec[{extra}]'",
            file=sys.stderr,
        )
        return 2
    except (ValueError, TypeError) as error:
        if "jaxrec" not in (_origin(error) or ""):
            raise
        print(f"{args.command}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{args.command}: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    return 0


def _origin(error: BaseException) -> str | None:
    """File that raised."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return None if trace is None else trace.tb_frame.f_code.co_filename
