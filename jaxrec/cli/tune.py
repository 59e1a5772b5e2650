"""Searches settings of a recipe: trains trials, stops poor ones early, keeps the best (Optuna).

    jaxrec tune --config=configs/table.py:events.parquet --workdir=runs/tuned \\
        --search model.width=32,64,128 --search train.learning_rate=1e-4..1e-2:log \\
        --search layout.tokens=1..8 --trials=20

  --config=FILE[:ARGUMENT]  a recipe of configs/
  --config.KEY=VALUE        another value for a key, in all trials
  --workdir=FOLDER          where the search lives: data, trials, table, best.py
  --search KEY=VALUES       a key to search, once for each: A,B,C or LOW..HIGH, with :log where the
                            logarithm is drawn evenly or :step=N for a grid
  --trials=N                trials that are trained, all starts together (default 20)

All trials have the same data, seed and validation. The highest train.metric of a trial counts.
After every validation (train.eval_every) a trial that is below the median of the earlier ones at
this step is stopped. Settings that do not fit together are counted and cost nothing. The same
command continues a killed search, and the trial that it was in; a larger --trials goes on.

FOLDER/best.py is the best recipe, trials.md and trials.json are the table, trials.png a plot
(matplotlib). Checkpoints of all trials but the best are removed.
"""

import argparse
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from jaxrec import config as config_lib
from jaxrec.cli import flags
from jaxrec.config import Config, asks_for_advice, load_recipe, validate
from jaxrec.errors import ConfigError, WorkdirError
from jaxrec.runtime.program import Parser, exit_status

if TYPE_CHECKING:
    from jaxrec.types import Json

STUDY = "study.json"  # what a folder searches, written once


FLAGS = ("config", "workdir", "search", "trials", "help")


def parser() -> Parser:
    """The flags; --help shows the configuration keys beside them."""
    made = Parser("jaxrec tune", __doc__ or "")
    made.add_argument("--config", required=True, help="FILE.py[:ARGUMENT], a recipe")
    made.add_argument("--workdir", required=True, help="folder of the search")
    made.add_argument(
        "--search", action="append", default=[], metavar="KEY=VALUES", help="a key to search"
    )
    made.add_argument("--trials", type=int, default=20, help="trials that are trained")
    return made


def main(argv: Sequence[str]) -> int:
    """Runs or continues a search; returns the exit status. argv: without the program's name."""
    if set(argv).intersection(("-h", "--help")):
        print(f"{(__doc__ or '').strip()}\n\n{flags.describe()}")
        return 0
    flags.check_overrides(argv, FLAGS)
    overrides = [text for text in argv if text.startswith("--config.")]
    args = parser().parse_args([text for text in argv if text not in overrides])
    if args.trials < 1:
        raise ConfigError(f"--trials={args.trials}: 1 or more are needed")
    return _search(args, overrides)


def _search(args: argparse.Namespace, overrides: Sequence[str]) -> int:
    config = load_recipe(args.config)
    if not isinstance(config, Config):
        raise ConfigError(f"--config={args.config}: get_config returned no jaxrec Config")
    from jaxrec.cli import search_space  # --help does without jax
    from jaxrec.data import advised
    from jaxrec.experiments import settings

    for text in overrides:
        settings.override(config, text)
    given = [text.removeprefix("--config.").partition("=")[0] for text in overrides]
    space = search_space.parse(args.search, given)
    validate(config)
    from jaxrec.cli import tune_trials
    from jaxrec.runtime import loggers, workdir
    from jaxrec.runtime.preemption import Preempted, Preemption
    from jaxrec.runtime.progress import say

    loggers.check(config.train.loggers)
    folder = pathlib.Path(args.workdir)
    if (folder / workdir.CONFIG).exists():
        raise WorkdirError(f"workdir {folder} holds a run: a search needs a folder of its own")
    with workdir.lock(folder), Preemption(ctrl_c=True) as preemption:
        try:
            with preemption.interrupting():
                if asks_for_advice(args.config):
                    advised.fill(config, given, folder, started=_started(folder))
                config.data.cache_dir = config.data.cache_dir or str(folder / "data")
                _claim(folder, config, args.search)
            tune_trials.run(config, folder, space, args.trials, preemption)
        except Preempted as stop:
            say(f"stopped by {stop.cause}; the same command continues the search")
            return stop.status
    return 0


def _started(folder: pathlib.Path) -> Config | None:
    """The configuration that a search began with; None before."""
    file = folder / STUDY
    return config_lib.build(Config, _read(file)["config"], "") if file.exists() else None


def _claim(folder: pathlib.Path, config: Config, texts: Sequence[str]) -> None:
    """Makes the folder this search's. Raises WorkdirError for that of another one."""
    from jaxrec.runtime import workdir

    study = {"config": json.loads(config_lib.to_json(config)), "search": sorted(texts)}
    file = folder / STUDY
    if not file.exists():
        workdir.write_text(file, json.dumps(study, indent=2) + "\n")
        return
    known = _read(file)
    before, here = workdir.flatten(_started(folder) or Config()), workdir.flatten(config)
    lines = [
        f"{key}={before[key]!r} there, {here[key]!r} here"
        for key in before
        if before[key] != here[key]
    ]
    if known["search"] != study["search"]:
        lines.append(f"--search {', '.join(known['search'])} there, {', '.join(texts)} here")
    if lines:
        raise WorkdirError(
            f"workdir {folder} holds another search ({'; '.join(lines[:3])}): start that one, or "
            "name another --workdir"
        )


def _read(file: pathlib.Path) -> "Json":
    from jaxrec.untrusted import json_objects

    def refuse(text: str) -> WorkdirError:
        return WorkdirError(f"{text}; name another --workdir")

    values = json_objects.read(file, refuse)
    json_objects.get(values, "config", dict, str(file), refuse)
    search = json_objects.get(values, "search", list, str(file), refuse)
    json_objects.texts(search, f"{file}: damaged: search", refuse)
    return values


if __name__ == "__main__":
    sys.exit(exit_status("jaxrec tune", main))
