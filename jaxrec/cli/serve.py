"""Recommendations over HTTP from a run and its store of user states.

    jaxrec serve --workdir=runs/mine --states=states --port=8000

POST /recommend, POST /events, DELETE /users/ID, GET /health, /ready, /metrics; GET /docs describes
them. A service that others can reach needs a token. docs/service.md says everything.
"""

import argparse
import importlib.util
import sys
from collections.abc import Sequence
from typing import Any

from jaxrec.errors import ConfigError
from jaxrec.runtime.program import Parser, exit_status

NEEDED = ("fastapi", "uvicorn", "prometheus_client")


def main(argv: Sequence[str]) -> int:
    """Serves until SIGTERM or Ctrl-C; returns the exit status, 0 or 130.

    argv: without the program's name. Raises JaxrecError and OSError with a line that says what to
    change.
    """
    args = parser().parse_args(argv)
    for name in NEEDED:
        if importlib.util.find_spec(name) is None:
            raise ConfigError(f"{name} is not installed: pip install 'jaxrec[serve]'")
    return _serve(args)


def parser() -> Parser:
    """The flags."""
    from jaxrec.server.limits import Limits

    flags = Parser("jaxrec serve", __doc__ or "")
    flags.add_argument("--workdir", required=True, help="folder of the training run")
    flags.add_argument("--states", required=True, help="path or URL of its store of user states")
    flags.add_argument("--which", default="best", help="checkpoint: best, latest or a step")
    flags.add_argument("--host", default="127.0.0.1", help="address")
    flags.add_argument("--port", type=int, default=8000, help="0: a free one")
    flags.add_argument(
        "--token-file", default="", help="file of the token of clients (default: $JAXREC_TOKEN)"
    )
    flags.add_argument("--journal", default="", help="folder (default: STATES.journal)")
    for name, kind, text in (
        ("max_batch", int, "users of one call to the model, and of one request"),
        ("max_wait_ms", float, "how long a request waits for others to share a batch"),
        ("queue", int, "requests that may wait; more are refused with status 429"),
        ("timeout", float, "seconds until a waiting request is answered with status 504"),
        ("max_k", int, "items of a list"),
        ("max_ids", int, "excluded items, or candidates, of a user"),
        ("max_events", int, "events of one append"),
    ):
        default = getattr(Limits, name)
        flags.add_argument(f"--{name.replace('_', '-')}", type=kind, default=default, help=text)
    return flags


def _serve(args: argparse.Namespace) -> int:
    from jaxrec.runtime.preemption import Preempted, Preemption
    from jaxrec.server import running
    from jaxrec.server.generation import Generation
    from jaxrec.server.journal import Journal
    from jaxrec.server.limits import Limits
    from jaxrec.server.metrics import Metrics
    from jaxrec.server.service import Service, journal_folder
    from jaxrec.server.writing import Writer

    names: dict[str, Any] = {name: getattr(args, name) for name in Limits.__dataclass_fields__}
    limits = Limits(**names)
    token = running.read_token(args.token_file)
    running.check_address(args.host, token)
    folder = journal_folder(args.states, args.journal)
    with running.bind(args.host, args.port) as listener:
        try:
            with Preemption(ctrl_c=True) as preemption, preemption.interrupting():
                generation = Generation.load(args.workdir, args.states, limits, which=args.which)
        except Preempted as stop:
            return stop.status
        metrics = Metrics()
        service = Service(
            generation,
            Writer(generation, Journal(folder), limits, metrics),
            limits,
            metrics,
            prepare=generation.compile,
            journal=args.journal,
        )
        print(f"jaxrec serve: {running.url_of(listener)} (compiling; /ready says when)", flush=True)
        return running.run(service, listener, token)


if __name__ == "__main__":
    sys.exit(exit_status("jaxrec serve", main))
