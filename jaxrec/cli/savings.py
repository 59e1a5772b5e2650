"""Answers whether compressing long histories is worth it, on your data and on this machine.

    jaxrec savings --events=events.parquet --workdir=runs/savings
    jaxrec savings --config=configs/quickstart.py --workdir=runs/savings
    jaxrec savings --recent=RUN --compressed=RUN --full=RUN --workdir=runs/savings

Trains three models that differ in what they are shown (the recent window alone, compressed
history, full history), or takes finished runs of yours, measures quality and cost, and prints a
verdict of three lines and the tables. WORKDIR has the page (index.html), tables and plots then.
With --events the settings are those that the data asks for (`jaxrec describe` tells why); columns
are named by --config.data.user_column=NAME and the like.
Scores do not count the user's own items, which would carry raw ids past the tokens.
A stopped command goes on where it was.
"""

import argparse
import pathlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from jaxrec.cli import flags
from jaxrec.config import asks_for_advice
from jaxrec.errors import ConfigError
from jaxrec.runtime.program import Parser, exit_status

if TYPE_CHECKING:
    from jaxrec.experiments.settings import ExperimentsConfig

FLAGS = ("workdir", "config", "events", "seeds", "recent", "compressed", "full", "help")
EXAMPLE = "--events=events.parquet"
RUNS = "runs"  # in the folder of an answer


def parser() -> Parser:
    """The flags."""
    made = Parser("jaxrec savings", __doc__ or "")
    made.epilog = "--config.KEY=VALUE sets any key of the compressed model; the others follow it."
    made.add_argument("--workdir", default="", help="folder of the runs, tables and the page")
    made.add_argument(
        "--config", default="", help="FILE.py[:ARGUMENT], a recipe of a compressed model"
    )
    made.add_argument(
        "--events", default="", help="file or glob of events: parquet, CSV, JSON lines"
    )
    made.add_argument("--seeds", type=int, default=1, help="trainings of each model")
    for mode in ("recent", "compressed", "full"):
        made.add_argument(
            f"--{mode}", default="", metavar="RUN", help=f"finished run, layout.mode={mode}"
        )
    return made


def main(argv: Sequence[str]) -> int:
    """The command; returns its exit status."""
    flags.check_overrides(argv, FLAGS, recorded=True)
    overrides = [text for text in argv if text.startswith("--config.")]
    args = parser().parse_args([text for text in argv if text not in overrides])
    if not args.workdir:
        raise ConfigError("--workdir=FOLDER is needed: where runs, tables and the page go")
    if args.seeds < 1:
        raise ConfigError(f"--seeds={args.seeds}: a positive number of trainings is needed")
    given = {mode: getattr(args, mode) for mode in ("recent", "compressed", "full")}
    if any(given.values()) and (missing := [f"--{m}" for m, run in given.items() if not run]):
        raise ConfigError(f"{missing[0]}=RUN is needed too: all three runs, or none")
    if any(given.values()) and (args.config or args.events or overrides or args.seeds > 1):
        extra = "--config" if args.config else "--events" if args.events else "--seeds"
        extra = overrides[0] if overrides else extra
        raise ConfigError(f"{extra}: finished runs are taken as they are; leave it out")
    if args.config and args.events:
        raise ConfigError("--config and --events: give one of them")
    if not (any(given.values()) or args.config or args.events):
        raise ConfigError(f"--events=FILE or --config=FILE.py is needed, for example {EXAMPLE}")
    return _answer(args, overrides, {m: pathlib.Path(run) for m, run in given.items() if run})


def _config(args: argparse.Namespace, overrides: Sequence[str]) -> "ExperimentsConfig":
    """The configuration of the compressed run, as flags and data have it."""
    from jaxrec.data import advised
    from jaxrec.experiments import savings, settings

    config = savings.of_events(args.events) if args.events else savings.of_recipe(args.config)
    for text in overrides:
        settings.override(config, text)
    if args.events or asks_for_advice(args.config):
        given = [text.removeprefix("--config.").partition("=")[0] for text in overrides]
        config.layout.mode = "compressed"  # what is asked about, whatever suits the data
        runs = pathlib.Path(args.workdir) / RUNS
        advised.fill(config, [*given, "layout.mode"], runs)
    return savings.asked(config, tuple(range(config.seed, config.seed + args.seeds)))


def _answer(
    args: argparse.Namespace, overrides: Sequence[str], given: dict[str, pathlib.Path]
) -> int:
    from jaxrec.experiments import result_table, savings
    from jaxrec.experiments.output import check_output
    from jaxrec.experiments.runs import Lab
    from jaxrec.runtime.preemption import Preempted, Preemption
    from jaxrec.runtime.progress import say

    folder = pathlib.Path(args.workdir)
    config = savings.of_runs(given) if given else _config(args, overrides)
    check_output(folder, config)
    lab = Lab(config, folder / RUNS, say, given=given)
    try:
        with Preemption(ctrl_c=True) as preemption, preemption.interrupting():
            lines = savings.answer(lab, folder, savings.command(args, overrides))
    except Preempted as stop:
        say(f"stopped by {stop.cause}; the same command goes on")
        return stop.status
    print("\n".join(lines))
    for name in ("gap", "cost"):
        rows = result_table.read(folder / f"{name}.json")["rows"]
        print(f"\n{result_table.markdown(savings.shown(rows))}")
    print(f"\n{folder / 'index.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(exit_status("jaxrec savings", main))
