"""Prints results of evaluations: as a table, as Markdown, or as a page of all of them.

jaxrec report runs/mine/results.json
jaxrec report --page=results > docs/quality.md
"""

import pathlib
import sys
from collections.abc import Sequence

from jaxrec.errors import ConfigError, DataError
from jaxrec.runtime.program import Parser
from jaxrec.untrusted import json_objects

RESULTS = "results.json"


def parser() -> Parser:
    """The flags."""
    made = Parser("jaxrec report", __doc__ or "")
    made.add_argument(
        "files", nargs="*", metavar="FILE", help="JSON files of evaluations, or folders of runs"
    )
    made.add_argument("--markdown", action="store_true", help="Markdown tables, for a README")
    made.add_argument("--page", default="", metavar="FOLDER", help="all results of a folder")
    made.add_argument("--verbose", action="store_true", help="also rows that say nothing new")
    return made


def main(argv: Sequence[str]) -> int:
    """`jaxrec report`; returns its exit status."""
    args = parser().parse_args(argv)
    if bool(args.files) == bool(args.page):
        raise ConfigError("files, or --page=FOLDER, are needed: see --help")
    from jaxrec.evaluation import rendering, terminal  # behind the mistakes in flags

    if args.page:
        folder = pathlib.Path(args.page)
        if not folder.is_dir():
            raise ConfigError(f"--page={folder}: no such folder")
        sys.stdout.write(rendering.page(folder))
    for file in args.files:
        path = _file(file)
        result = json_objects.read(path, _no_result)
        with json_objects.taken_apart(path, _no_result):
            if args.markdown:
                text = rendering.markdown(result)
            else:
                text = terminal.format_table(result, verbose=args.verbose, source=str(path))
        print(text)
    return 0


def _no_result(text: str) -> DataError:
    return DataError(
        f"{text}; it is not the result of an evaluation: jaxrec evaluate --output=FILE writes one"
    )


def _file(name: str) -> pathlib.Path:
    """The file of results that an argument names. Raises ConfigError where there is none."""
    path = pathlib.Path(name)
    if path.is_dir():
        path /= RESULTS
        if not path.is_file():
            raise ConfigError(
                f"{name} has no {RESULTS}: jaxrec evaluate --workdir={name} writes it"
            )
    if not path.is_file():
        raise ConfigError(f"{name}: no such file")
    return path
