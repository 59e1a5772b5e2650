"""Evaluates a run: full ranking of the catalog for every held-out event.

python eval.py --config=configs/quickstart.py --workdir=runs/quickstart

--config and its overrides are those of the training run; `eval.*` and `train.*` may differ.

--config.eval.mode=all (default) or row names, comma-separated: compressed, masked, without-tokens,
recent, full, popularity, copy-last, frequency-all, frequency-last-R (R: recent window).
--config.eval.full_workdir=DIR adds the row of a full-history model (layout.mode=full) and the
quality ratio; --config.eval.recent_workdir=DIR adds that of a model of the recent window alone
(layout.mode=recent), and with both the share of the gap that compression closes;
--config.eval.filter_seen leaves out items the user already had;
--output=FILE keeps the result as JSON (default: <workdir>/results.json).
"""

from jaxrec.cli import flags

if __name__ == "__main__":
    flags.help_if_asked(__doc__)  # before jax is imported, which takes seconds

import json
import pathlib
import sys
from typing import Any

from absl import flags as absl_flags

from jaxrec.config import validate
from jaxrec.errors import WorkdirError
from jaxrec.evaluation import evaluator, rendering
from jaxrec.runtime import workdir
from jaxrec.session import Session

absl_flags.DEFINE_string("output", "", "JSON file of the result")


def main(flags: Any) -> None:
    config, folder = validate(flags.config), pathlib.Path(flags.workdir)
    if not folder.is_dir():
        raise WorkdirError(f"{folder}: no such run; train it first, or name its folder")
    # wrong row names and folders are refused before the work starts
    evaluator.chosen(config)
    workdir.check(folder, config)
    session = Session(config, folder)
    workdir.check_data(folder, session.digests)
    report = session.evaluate(lambda line: print(line, flush=True))
    report["command"] = "python " + " ".join(sys.argv)
    output = pathlib.Path(flags.output or folder / "results.json")
    output.parent.mkdir(parents=True, exist_ok=True)
    workdir.write_text(output, json.dumps(report, indent=2) + "\n")
    print(rendering.format_table(report))


if __name__ == "__main__":
    flags.run(main, __doc__)
