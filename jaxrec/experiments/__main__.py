"""Experiments of the compute-savings report (docs/experiments.md).

python -m jaxrec.experiments NAME --config=configs/experiments_quick.py --output=DIR
python -m jaxrec.experiments report --output=DIR [--bench=BENCHDIR]
python -m jaxrec.experiments verify FILE.json [--row=NAME]
"""

import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from jaxrec.errors import ConfigError, JaxrecError, WorkdirError
from jaxrec.experiments import catalog, page, plots, settings, table, verify
from jaxrec.experiments.runs import Lab
from jaxrec.runtime.preemption import Preempted, Preemption


def main(argv: Sequence[str]) -> int:
    args, overrides = settings.parser(catalog.EXPERIMENTS).parse_known_args(argv)
    if args.name not in (*catalog.EXPERIMENTS, "all", "report", "verify"):
        raise ConfigError(
            f"experiment {args.name!r}: allowed are {', '.join(catalog.EXPERIMENTS)}, all, "
            "report, verify"
        )
    if args.name == "verify":
        return verify.main(args, overrides)
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
    own(output, config)
    output.mkdir(parents=True, exist_ok=True)
    plots.check()
    lab = Lab(config, pathlib.Path(args.runs), say)
    wanted = list(catalog.ALL) if args.name == "all" else [args.name]
    # all are laid out before the first is run: a setting that cannot work is found now
    experiments = [catalog.EXPERIMENTS[name](lab) for name in wanted]
    for number, experiment in enumerate(experiments):
        say(f"experiment {experiment.name} ({number + 1} of {len(wanted)})")
        given = [experiment.name if text == "all" else text for text in argv]
        value = run(lab, experiment, settings.command(given))
        table.write(output, value)
        plots.write(output, value)
        print(f"{experiment.title}\n\n{table.markdown(value['rows'])}\n", flush=True)
    return 0


def run(lab: Lab, experiment: table.Experiment, command: str) -> dict[str, Any]:
    """The table of an experiment; trains what it needs."""
    rows = []
    for number, cell in enumerate(experiment.cells):
        say(f"{experiment.name}: row {number + 1} of {len(experiment.cells)}, {cell.name}")
        rows.append(cell.make())
    return table.result(experiment, rows, lab.config, catalog.protocol(lab, experiment), command)


def own(output: pathlib.Path, config: settings.ExperimentsConfig) -> None:
    """Raises WorkdirError where the folder holds tables of another configuration."""
    for name in catalog.EXPERIMENTS:
        file = output / f"{name}.json"
        if not file.is_file():
            continue
        # a key that was added since has its default in older tables
        theirs = settings.record(settings.rebuild(table.read(file)["config"]))
        mine = settings.record(config)
        if name != "probe":  # it decides no other table
            del theirs["experiments"]["probe"], mine["experiments"]["probe"]
        if theirs != mine:
            first = next(iter(verify.differing(theirs, mine)), "its keys")
            raise WorkdirError(
                f"{output} holds tables of another configuration ({first}): name another "
                "--output, or remove its tables"
            )


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def program() -> int:
    try:
        # what is made between trainings is kept as a whole or not at all: it may end anywhere
        with Preemption() as preemption, preemption.interrupting():
            return main(sys.argv[1:])
    except Preempted:
        say("stopped by SIGTERM; the same command goes on")
        return 0
    except (JaxrecError, OSError) as error:
        say(f"jaxrec.experiments: error: {error}")
        return 2
    except KeyboardInterrupt:
        say("jaxrec.experiments: interrupted")
        return 130


if __name__ == "__main__":
    sys.exit(program())
