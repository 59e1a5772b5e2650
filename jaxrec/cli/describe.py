"""Describes a data set, warns about what would spoil an evaluation, and advises a recipe for it.

    jaxrec describe --config=configs/quickstart.py --workdir=runs/quickstart

  --config=FILE[:ARGUMENT]  a recipe of configs/; only its data.* keys matter
  --config.KEY=VALUE        another value for one of the keys below; the advice keeps it
  --workdir=FOLDER          prepared data is in FOLDER/data (or in data.cache_dir)
  --verify                  reads all prepared files again and compares their digests first
  --output=FILE.json        also writes the description there, and a plot beside it, FILE.png
  --recipe=FILE.py          writes the advised recipe there, with its reasons as comments; a file of
                            other content is never replaced

Prints a table: events, users, items, quantiles of history lengths, repeats, ties, long tail, split,
and warnings; then the advised settings, each with its reason. Data that is not prepared yet is
prepared first.
"""

import json
import pathlib
import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jaxrec.cli import flags
from jaxrec.config import Config, lookup
from jaxrec.errors import ConfigError
from jaxrec.runtime.program import exit_status

if TYPE_CHECKING:
    from jaxrec.types import Json


def main(argv: Sequence[str]) -> int:
    """`jaxrec describe`; returns its exit status."""

    def described(values: Any) -> None:
        describe(values, f"jaxrec describe {shlex.join(argv)}")

    return flags.call(described, __doc__, argv, define=_define, advice="none")


def _define(values: Any) -> None:
    from absl import flags as absl_flags

    absl_flags.DEFINE_string("output", "", "JSON file of the description", flag_values=values)
    absl_flags.DEFINE_string("recipe", "", "Python file for the advised recipe", flag_values=values)
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
    recipe = pathlib.Path(flags.recipe) if flags.recipe else None
    if recipe is not None and recipe.suffix != ".py":
        raise ConfigError(f"--recipe={recipe}: the name must end in .py")
    prepared = prepare(flags.config.data, pathlib.Path(flags.workdir) / "data")
    if flags.verify:
        size = verify(prepared)
        print(f"{prepared.folder}: {size:,} bytes are what was written", file=sys.stderr)
    statistics = description.describe(prepared)
    print(description.table(statistics))
    _advise(flags, statistics, recipe)
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


def _advise(flags: Any, statistics: "Json", recipe: pathlib.Path | None) -> None:
    """Prints the advice and writes the recipe. Keys that the command line gives stay."""
    from ml_collections import config_flags

    from jaxrec.data import advice

    given = [*config_flags.get_override_values(flags["config"])]
    advised = advice.advise(statistics, advice.values(flags.config, given))
    print(f"\nAdvice, to begin with:\n\n{advised.table()}")
    if recipe is None:
        print("\n--recipe=FILE.py writes it as a recipe")
        return
    # the advice is about data: models of the recipe at hand are no part of it
    base = Config(data=flags.config.data)
    for key in given:
        advice.put(base, key, lookup(flags.config, key))
    advised.recipe(recipe, base, given)
    print(f"\njaxrec train --config={recipe} --workdir=runs/{recipe.stem}")


if __name__ == "__main__":
    sys.exit(exit_status("describe.py", main))
