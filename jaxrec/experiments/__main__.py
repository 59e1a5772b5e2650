"""Experiments of the compute-savings report (docs/experiments.md).

python -m jaxrec.experiments NAME --config=configs/experiments_quick.py --output=DIR
python -m jaxrec.experiments NAME --config=FILE.py --only=ROW,...
python -m jaxrec.experiments report --output=DIR [--bench=BENCHDIR]
python -m jaxrec.experiments verify FILE.json [--row=NAME]
"""

import argparse
import pathlib
import sys
from collections.abc import Sequence

from jaxrec.errors import ConfigError, JaxrecError
from jaxrec.experiments import page, plots, registry, result_table, settings, verify
from jaxrec.experiments.output import check_output
from jaxrec.experiments.runs import Lab
from jaxrec.runtime import huge_pages
from jaxrec.runtime.preemption import Preempted, Preemption
from jaxrec.types import Json


def main(argv: Sequence[str]) -> int:
    """Runs a command; returns its exit status."""
    args, overrides = settings.parser(registry.EXPERIMENTS).parse_known_args(argv)
    if args.name not in (*registry.EXPERIMENTS, "all", "report", "verify"):
        raise ConfigError(
            f"experiment {args.name!r}: allowed are {', '.join(registry.EXPERIMENTS)}, all, "
            "report, verify"
        )
    if args.name == "verify":
        return verify.main(args, overrides)
    if args.only:
        prepare(args, overrides)
        return 0
    if not args.output:
        raise ConfigError("--output=FOLDER is needed: where tables and plots go")
    output = pathlib.Path(args.output)
    if args.name == "report":
        if overrides:
            raise ConfigError(f"{overrides[0]!r}: report takes --output and --bench alone")
        page.write(output, pathlib.Path(args.bench) if args.bench else None)
        print(f"{output / 'index.html'}, {output / 'README.md'}")
        return 0
    if not args.config:
        raise ConfigError("--config=FILE.py is needed: --config=configs/experiments_quick.py")
    config = settings.load(args.config, overrides)
    check_output(output, config)
    output.mkdir(parents=True, exist_ok=True)
    plots.check()
    names = list(registry.ALL) if args.name == "all" else [args.name]
    make_all(names, Lab(config, pathlib.Path(args.runs), say), output, argv)
    return 0


def prepare(args: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Trains and evaluates what rows of an experiment need (--only), and writes no table.

    Raises ConfigError for rows that the experiment does not have.
    """
    if args.name not in registry.EXPERIMENTS:
        raise ConfigError(f"--only: rows are those of one experiment, not of {args.name!r}")
    if not args.config:
        raise ConfigError("--config=FILE.py is needed: --config=configs/experiments_quick.py")
    lab = Lab(settings.load(args.config, overrides), pathlib.Path(args.runs), say)
    cells = {cell.name: cell for cell in registry.EXPERIMENTS[args.name](lab).cells}
    names = chosen_rows(args.only, list(cells))
    for number, name in enumerate(names):
        say(f"{args.name}: row {number + 1} of {len(names)}, {name}")
        cell = cells[name]
        (cell.prepare or cell.make)()
    say(f"{args.name}: {', '.join(names)} are ready; without --only the table is made")


def chosen_rows(texts: Sequence[str], known: Sequence[str]) -> list[str]:
    """Rows that arguments of --only name, one each or several with commas between.

    >>> chosen_rows(["a,b", "full, below 3"], ["a", "b", "full, below 3"])
    ['a', 'b', 'full, below 3']
    """
    names: list[str] = []
    for text in texts:  # a row's name may hold a comma itself
        names += [text] if text in known else [part.strip() for part in text.split(",")]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ConfigError(f"--only={unknown[0]!r}: rows are {', '.join(map(repr, known))}")
    return list(dict.fromkeys(names))


def make_all(names: Sequence[str], lab: Lab, output: pathlib.Path, argv: Sequence[str]) -> None:
    """Makes experiments one after the other and writes their tables and plots."""
    # all are laid out before the first runs, so that wrong settings are found at once
    experiments = [registry.EXPERIMENTS[name](lab) for name in names]
    for number, experiment in enumerate(experiments):
        say(f"experiment {experiment.name} ({number + 1} of {len(names)})")
        arguments = [experiment.name if text == "all" else text for text in argv]
        value = make(lab, experiment, settings.command(arguments))
        result_table.write(output, value)
        plots.write(output, value)
        print(f"{experiment.title}\n\n{result_table.markdown(value['rows'])}\n", flush=True)


def make(lab: Lab, experiment: result_table.Experiment, command: str) -> Json:
    """The table of an experiment; trains the runs that it needs."""
    rows = []
    for number, cell in enumerate(experiment.cells):
        say(f"{experiment.name}: row {number + 1} of {len(experiment.cells)}, {cell.name}")
        rows.append(cell.make())
    return result_table.result(
        experiment, rows, lab.config, registry.protocol(lab, experiment), command
    )


def say(line: str) -> None:
    """Prints a line of progress."""
    print(line, file=sys.stderr, flush=True)


def program() -> int:
    """`main` with errors as one line; returns the exit status."""
    try:
        # results between trainings are written whole or not at all, so a signal may end it anywhere
        with Preemption(ctrl_c=True) as preemption, preemption.interrupting():
            return main(sys.argv[1:])
    except Preempted as stop:
        say(f"stopped by {stop.cause}; the same command goes on")
        return stop.status
    except (JaxrecError, OSError) as error:
        say(f"jaxrec.experiments: error: {error}")
        return 2
    except KeyboardInterrupt:
        say("jaxrec.experiments: interrupted")
        return 130


if __name__ == "__main__":
    huge_pages.start_again()
    sys.exit(program())
