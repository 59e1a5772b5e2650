"""Evaluates a run: full ranking of the catalog for every held-out event.

    jaxrec evaluate --workdir=runs/quickstart
    jaxrec evaluate --workdir=runs/quickstart --config.eval.mode=compressed,full \\
        --config.eval.full_workdir=runs/quickstart_full

  --workdir=FOLDER          the run; its own configuration is used, its best checkpoint evaluated
  --config.KEY=VALUE        another value for one of the keys below; `eval.*`, `train.*` and where
                            things are may differ from the run
  --config=FILE[:ARGUMENT]  the recipe of the run, in place of the configuration that it recorded
  --output=FILE             keeps the result as JSON (default: <workdir>/results.json)
  --verbose                 also the rows of the table that say nothing new

--config.eval.mode=all (default) or row names, comma-separated: compressed, masked, without-tokens,
recent, full, popularity, copy-last, frequency-all, frequency-last-R (R: recent window).
--config.eval.full_workdir=DIR adds the row of a full-history model (layout.mode=full) and the
quality ratio; --config.eval.recent_workdir=DIR adds that of a model of the recent window alone
(layout.mode=recent), and with both the share of the gap that compression closes;
--config.eval.filter_seen leaves out items the user already had.

The ranks of all targets are kept in <workdir>/ranks.npz; `jaxrec compare` pairs those of two runs.
"""

import pathlib
import shlex
from collections.abc import Sequence
from typing import Any

from jaxrec.cli import flags


def main(argv: Sequence[str]) -> int:
    """`jaxrec evaluate`; returns its exit status."""

    def evaluate(values: Any) -> int:
        return _evaluate(values, f"jaxrec evaluate {shlex.join(argv)}")

    return flags.call(evaluate, __doc__, argv, define=_define, recorded=True, advice="run")


def _define(values: Any) -> None:
    from absl import flags as absl_flags

    absl_flags.DEFINE_string("output", "", "JSON file of the result", flag_values=values)
    absl_flags.DEFINE_bool("verbose", False, "all rows of the table", flag_values=values)


def _evaluate(values: Any, command: str) -> int:
    from jaxrec.cli import results  # --help and mistakes in flags do without jax
    from jaxrec.runtime import compile_cache, progress

    folder = pathlib.Path(values.workdir)
    compile_cache.use(values.config.train.compilation_cache)
    session = results.open_run(values.config, folder)
    evaluation = results.evaluate(session, progress.say)
    evaluation.report["command"] = command
    output = pathlib.Path(values.output or folder / "results.json")
    output.parent.mkdir(parents=True, exist_ok=True)
    results.write(evaluation, folder, output, values.verbose)
    return 0
