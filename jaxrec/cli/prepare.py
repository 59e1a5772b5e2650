"""Prepares the data set of a recipe, as `jaxrec train` would, and reports what was kept.

    jaxrec prepare --config=configs/table.py:events.parquet --workdir=runs/mine

  --config=FILE[:ARGUMENT]  a recipe of configs/; only its data.* keys matter
  --config.KEY=VALUE        another value for one of the keys below
  --workdir=FOLDER          prepared data goes to FOLDER/data (or to data.cache_dir)
  --beam                    prepare with Apache Beam (pip install 'jaxrec[beam]'), same result
  --beam_options=FLAGS      flags of Beam's pipelines, separated by spaces, such as
                            "--runner=FlinkRunner --flink_master=HOST:8081 --parallelism=64";
                            default: Beam's runner in this process. All workers must see
                            the input files and the folder of the prepared data

Prints one line of JSON: the folder, its digest and the counts of the preparation. Data that is
already prepared is only loaded.
"""

import importlib.util
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from jaxrec.cli import flags
from jaxrec.errors import ConfigError
from jaxrec.runtime.program import exit_status


def main(argv: Sequence[str]) -> int:
    """`jaxrec prepare`; returns its exit status."""
    return flags.call(prepare_data, __doc__, argv, define=_define, advice="none")


def _define(values: Any) -> None:
    from absl import flags as absl_flags

    absl_flags.DEFINE_bool("beam", False, "prepare with Apache Beam", flag_values=values)
    absl_flags.DEFINE_string("beam_options", "", "flags of Beam's pipelines", flag_values=values)


def prepare_data(flags: Any) -> None:
    """Prepares and prints the report. Raises ConfigError, DataError."""
    from jaxrec.data import beam  # --help does without them
    from jaxrec.data.preparation import prepare

    engine = None
    if flags.beam:
        if importlib.util.find_spec("apache_beam") is None:
            raise ConfigError("--beam: apache_beam is not installed: pip install 'jaxrec[beam]'")
        engine = beam.Pool(flags.beam_options.split() or (beam.RUNNER,))
    elif flags.beam_options:
        raise ConfigError(f"--beam_options={flags.beam_options!r}: --beam is not given")
    prepared = prepare(flags.config.data, pathlib.Path(flags.workdir) / "data", engine)
    facts = {"folder": str(prepared.folder), "digest": prepared.digest}
    print(json.dumps({**facts, **prepared.report}))


if __name__ == "__main__":
    sys.exit(exit_status("prepare.py", main))
