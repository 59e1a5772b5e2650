"""Makes rows of a results file again and compares them with what the file holds.

    python -m jaxrec.experiments verify results/experiments/length.json [--row="compressed 250"]
    python -m jaxrec.experiments verify results/completejourney.json [--row=compressed]

A results file is JSON with `command` and `rows`, each row with `name` and figures:

- With `experiment` beside them it is a table of `jaxrec.experiments`. Its rows are made again in
  this process from the runs below --runs; every rank is computed again.
- Otherwise the row's `command`, or that of the file, runs in a process of its own with another
  --output. A file of several data sets has a list `data` of groups of rows; its rows are called
  `<data>/<name>`.

A missing run ends with status 2; with --train it is trained first. --tolerance is relative.
Times and versions are not compared.
"""

import argparse
import math
import pathlib
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, TypeGuard

from jaxrec.errors import ConfigError, WorkdirError
from jaxrec.experiments import registry, result_table, settings
from jaxrec.experiments.runs import Lab
from jaxrec.types import Json
from jaxrec.untrusted import json_objects

# keys of timings and of facts about a machine, which differ between runs
MEASURED = re.compile(r"(^|_)(seconds|ms|per_s|curves?)($|_)|^(git|time|machine|versions|command)$")
PROGRAMS = re.compile(r"(eval\.py|-m (jaxrec|benchmarks(?=\.))(\.\w+)*)( |$)")
# arguments that name folders; only these may be added
ELSEWHERE = (*(f"--config.{key}" for key in settings.PLACES), "--workdir")
# arguments of the folders of other runs -> their layout.mode
OTHERS = {f"--config.eval.{mode}_workdir": mode for mode in ("full", "recent")}


class Difference(NamedTuple):
    """A value that is not as stored."""

    key: str
    stored: object
    now: object

    def __str__(self) -> str:
        return f"{self.key}: stored {_show(self.stored)}, now {_show(self.now)}"


class Missing:
    """Stands for the value of a key that one of two files does not have."""

    def __repr__(self) -> str:
        return "nothing"


MISSING = Missing()


def differing(
    stored: object,
    now: object,
    tolerance: float = 0.0,
    key: str = "",
    *,
    skip_measured: bool = False,
) -> Iterator[Difference]:
    """Where two JSON values differ.

    tolerance: of numbers, relative to the larger one. skip_measured: keys like `MEASURED` are
    not compared.
    """
    if isinstance(stored, Mapping) and isinstance(now, Mapping):
        for name in dict.fromkeys([*stored, *now]):
            if skip_measured and MEASURED.search(str(name)):
                continue
            pair = stored.get(name, MISSING), now.get(name, MISSING)
            path = f"{key}.{name}".lstrip(".")
            yield from differing(*pair, tolerance, path, skip_measured=skip_measured)
    elif isinstance(stored, list | tuple) and isinstance(now, list | tuple):
        if len(stored) != len(now):
            yield Difference(f"number of {key}", len(stored), len(now))
        for number, pair in enumerate(zip(stored, now, strict=False)):
            path = f"{key}[{number}]"
            yield from differing(*pair, tolerance, path, skip_measured=skip_measured)
    elif _number(stored) and _number(now):
        if not math.isclose(stored, now, rel_tol=tolerance):
            yield Difference(key, stored, now)
    elif stored != now or isinstance(stored, bool) != isinstance(now, bool):
        yield Difference(key, stored, now)


def _number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _show(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def main(args: argparse.Namespace, overrides: Sequence[str]) -> int:
    """Exit status 0 where every row is as stored, 1 (with both values) where one is not."""
    if not args.file:
        raise ConfigError("verify: a results file is needed, see docs/experiments.md")
    if args.tolerance < 0:
        raise ConfigError(f"--tolerance={args.tolerance}: allowed is 0 and more")
    file = pathlib.Path(args.file)
    value = read(file)
    stored = chosen(rows_of(value, file), args.row, file)
    if "experiment" in value:
        rows = remake(value, file, list(stored), args, overrides)
    else:
        rows = rerun(value, file, stored, args, overrides)
    status = 0
    for name, row in rows:
        differences = list(differing(stored[name], row, args.tolerance, skip_measured=True))
        if differences:
            status = 1
            print(f"{name}: {len(differences)} values differ")
            print("\n".join(f"  {difference}" for difference in differences), flush=True)
        else:
            print(f"{name}: as stored", flush=True)
    return status


def read(file: pathlib.Path) -> Json:
    """A results file; raises WorkdirError for anything else."""

    def refuse(text: str) -> WorkdirError:
        return WorkdirError(f"{text}; it is no results file")

    value = json_objects.read(file, refuse)
    json_objects.get(value, "command", str, str(file), refuse)
    return value


def rows_of(value: Json, file: pathlib.Path) -> dict[str, Json]:
    """Rows by name, `<data>/<name>` in a file of several data sets."""
    groups = [("", value)]
    if isinstance(value.get("data"), list):
        groups = [(f"{group['data']}/", group) for group in value["data"]]
    rows: dict[str, Json] = {}
    for prefix, group in groups:
        for row in group.get("rows") or ():
            if not isinstance(row, dict) or "name" not in row:
                raise WorkdirError(
                    f"{file}: its rows have no `name`, so they are timings and not quality; "
                    "timings are compared by python -m jaxrec.benchmark.compare"
                )
            if prefix + row["name"] in rows:
                raise WorkdirError(f"{file}: two rows are called {prefix + row['name']!r}")
            rows[prefix + row["name"]] = row
    if not rows:
        raise WorkdirError(f"{file}: no results file, it has no `rows`")
    return rows


def chosen(rows: dict[str, Json], name: str, file: pathlib.Path) -> dict[str, Json]:
    """All rows, or the one called `name`."""
    if name and name not in rows:
        raise ConfigError(f"--row={name!r}: {file} has {', '.join(map(repr, rows))}")
    return {name: rows[name]} if name else rows


def remake(
    value: Json,
    file: pathlib.Path,
    names: Sequence[str],
    args: argparse.Namespace,
    overrides: Sequence[str],
) -> Iterator[tuple[str, Json]]:
    """Rows of an experiment's table, made again from the runs below --runs."""
    value = result_table.read(file)
    if value["experiment"] not in registry.EXPERIMENTS:
        known = ", ".join(registry.EXPERIMENTS)
        raise WorkdirError(f"{file}: experiment {value['experiment']!r} is unknown, known: {known}")
    config = settings.rebuild(value["config"])
    for text in overrides:
        _place(text, ELSEWHERE[:-1])
        settings.override(config, text)
    lab = Lab(config, pathlib.Path(args.runs), _say, train=args.train, fresh=True)
    cells = {cell.name: cell for cell in registry.EXPERIMENTS[value["experiment"]](lab).cells}
    for name in names:
        if name not in cells:
            raise WorkdirError(f"{file}: row {name!r} is no row of this experiment any more")
    for name in names:
        yield name, result_table.plain(cells[name].make())


def rerun(
    value: Json,
    file: pathlib.Path,
    stored: Mapping[str, Json],
    args: argparse.Namespace,
    overrides: Sequence[str],
) -> Iterator[tuple[str, Json]]:
    """Rows that the stored commands write to another --output; each command runs once."""
    for text in overrides:
        _place(text, (*ELSEWHERE, *OTHERS))
    by_command: dict[str, list[str]] = {}
    for name, row in stored.items():
        by_command.setdefault(str(row.get("command", value["command"])), []).append(name)
    for command, names in by_command.items():
        argv = [*program(command, file), *overrides]
        evaluation = argv[1] == "eval.py"
        if evaluation:
            for training in trainings(argv):
                _train(training, args.train)
            if args.row:
                argv.append(f"--config.eval.mode={args.row}")
        elif args.train:
            raise ConfigError(
                f"--train: {file} was made by a command that trains what it needs, or says what is "
                "missing; leave --train out"
            )
        with tempfile.TemporaryDirectory() as folder:
            output = pathlib.Path(folder) / file.name
            run(redirected(argv, output, file))
            rows = rows_of(read(output), output)
        for name in names:
            yield name, rows.get(name, {})


def _place(text: str, allowed: Sequence[str]) -> None:
    """Raises ConfigError for an argument that does not name a folder."""
    if text.partition("=")[0] not in allowed:
        raise ConfigError(
            f"{text!r}: verify repeats what the file says; places alone may differ "
            f"({', '.join(f'{name}=' for name in allowed)})"
        )


def program(command: str, file: pathlib.Path) -> list[str]:
    """A stored command as arguments, run by this Python; raises WorkdirError for other programs."""
    # `jaxrec evaluate` is `python eval.py`
    command = re.sub(r"^jaxrec evaluate\b", "python eval.py", command)
    argv = shlex.split(re.sub(r"^jaxrec\b", "python -m jaxrec", command))
    if argv[0] != "python" or not PROGRAMS.match(" ".join(argv[1:])):
        raise WorkdirError(
            f"{file}: verify runs `python eval.py`, `python -m jaxrec...` and `python -m "
            f"benchmarks...`; the file was made by {command!r}"
        )
    return [sys.executable, *argv[1:]]


def redirected(argv: Sequence[str], output: pathlib.Path, file: pathlib.Path) -> list[str]:
    """The arguments with another --output; raises WorkdirError where they have none."""
    arguments = list(argv)
    for number, text in enumerate(arguments):
        if text.startswith("--output="):
            arguments[number] = f"--output={output}"
            return arguments
        if text == "--output" and number + 1 < len(arguments):
            arguments[number + 1] = str(output)
            return arguments
    raise WorkdirError(f"{file}: its command has no --output, so it cannot be made beside it")


def trainings(argv: Sequence[str]) -> list[list[str]]:
    """Commands that train the missing runs of an `eval.py` command.

    The run of `full_workdir` has layout.mode=full and otherwise the same keys, that of
    `recent_workdir` likewise.
    """
    values = dict(text.split("=", 1) for text in argv[2:] if "=" in text)
    kept = [
        text
        for text in argv[2:]
        if not text.startswith(("--output", "--workdir", "--config.eval.", "--config.layout.mode"))
    ]
    mode = [text for text in argv[2:] if text.startswith("--config.layout.mode=")]
    commands = []
    runs = {"--workdir": mode} | {
        flag: [f"--config.layout.mode={other}"] for flag, other in OTHERS.items()
    }
    for flag, extra in runs.items():
        folder = values.get(flag)
        if folder and not pathlib.Path(folder).is_dir():
            commands.append([argv[0], "train.py", *kept, *extra, f"--workdir={folder}"])
    return commands


def _train(argv: Sequence[str], allowed: bool) -> None:
    if not allowed:
        raise WorkdirError(
            f"{argv[-1].partition('=')[2]}: no such run; --train trains it first (python "
            f"{shlex.join(argv[1:])}), {'=, '.join(OTHERS)}= and --workdir= say where runs are"
        )
    run(argv)


def run(argv: Sequence[str]) -> None:
    """Runs a process, its output on standard error; raises WorkdirError when it fails."""
    _say(f"python {shlex.join(argv[1:])}")
    done = subprocess.run(argv, stdout=sys.stderr, check=False)
    if done.returncode:
        raise WorkdirError(
            f"status {done.returncode} of: python {shlex.join(argv[1:])} (its message is above)"
        )


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
