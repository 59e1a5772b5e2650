"""Describes the data set of a recipe and warns about what would spoil an evaluation.

    jaxrec describe --config=configs/quickstart.py --workdir=runs/quickstart

  --config=FILE[:ARGUMENT]  a recipe of configs/; only its data.* keys matter
  --config.KEY=VALUE        another value for one of the keys below
  --workdir=FOLDER          prepared data is in FOLDER/data (or in data.cache_dir)
  --verify                  reads all prepared files again and compares their digests first
  --output=FILE.json        also writes the description there, and a plot beside it, FILE.png

Prints a table: events, users, items, quantiles of history lengths, repeats, ties, long tail, split,
and warnings. Data that is not prepared yet is prepared first.
"""

import json
import pathlib
import shlex
import sys
from collections.abc import Sequence
from typing import Any

from jaxrec.cli import flags
from jaxrec.errors import ConfigError
from jaxrec.runtime.program import exit_status


def main(argv: Sequence[str]) -> int:
    """`jaxrec describe`; returns its exit status."""

    def described(values: Any) -> None:
        describe(values, f"jaxrec describe {shlex.join(argv)}")

    return flags.call(described, __doc__, argv, define=_define)


def _define(values: Any) -> None:
    from absl import flags as absl_flags

    absl_flags.DEFINE_string("output", "", "JSON file of the description", flag_values=values)
    absl_flags.DEFINE_bool(
        "verify", False, "compare the digests of all prepared files", flag_values=values
    )


def describe(flags: Any, command: str) -> None:
    """Prepares, describes and prints. command: kept in the file. Raises ConfigError, DataError."""
    from jaxrec.data import description  # --help does without them
    from jaxrec.data.preparation import prepare, verify
    from jaxrec.runtime import workdir

    output = pathlib.Path(flags.output) if flags.output else None
    if output is not None and output.suffix != ".json":
        raise ConfigError(f"--output={output}: the name must end in .json")
    prepared = prepare(flags.config.data, pathlib.Path(flags.workdir) / "data")
    if flags.verify:
        size = verify(prepared)
        print(f"{prepared.folder}: {size:,} bytes are what was written", file=sys.stderr)
    statistics = description.describe(prepared)
    print(description.table(statistics))
    if output is None:
        return
    output.parent.mkdir(parents=True, exist_ok=True)
    facts = {"command": command, "dataset": flags.config.data.dataset, "digest": prepared.digest}
    workdir.write_text(
        output, json.dumps({**facts, **statistics}, indent=2, ensure_ascii=False) + "\n"
    )
    try:
        description.plot(prepared, str(output.with_suffix(".png")))
    except ModuleNotFoundError as error:
        print(f"no plot ({error}): pip install 'jaxrec[plot]'", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(exit_status("describe.py", main))
