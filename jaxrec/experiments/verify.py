"""Makes rows of a results file again and compares them with what the file holds.

    python -m jaxrec.experiments verify results/experiments/length.json [--row="compressed 449"]
    python -m jaxrec.experiments verify results/completejourney.json [--row=compressed]

A results file is JSON with `command` and `rows`, each row with `name` and figures:

- `experiment` beside them: a table of `jaxrec.experiments`, made again in this process. Runs
  are those below --runs; every rank is computed anew.
- otherwise `command` (a row's own, where it has one) runs as a process of its own with another
  --output, in the working folder. `data`, a list of such groups of rows, is a file of several
  data sets: its rows are `<data>/<name>`.

A run that is not there ends with status 2; with --train it is trained first. Values may differ
by --tolerance, relative. Times and versions are not compared.
"""

import json
import math
import pathlib
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from jaxrec.errors import ConfigError, WorkdirError
from jaxrec.experiments import catalog, settings, table
from jaxrec.experiments.runs import Lab

# a clock's readings and facts of a machine: never twice the same
FREE = re.compile(r"(^|_)(seconds|ms|per_s|curves?)($|_)|^(git|time|machine|versions|command)$")
PROGRAMS = re.compile(r"(eval\.py|-m (jaxrec|benchmarks)(\.\w+)+)( |$)")
# arguments that say where things lie, the ones that may be given in addition
ELSEWHERE = (*(f"--config.{key}" for key in settings.PLACES), "--workdir")
FULL = "--config.eval.full_workdir"


class Difference(NamedTuple):
    """A value that is not what it was."""

    key: str
    stored: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.key}: stored {_show(self.stored)}, now {_show(self.now)}"


class Nothing:
    """Stands for a value that is not there."""

    def __repr__(self) -> str:
        return "nothing"


NOTHING = Nothing()


def differing(
    stored: Any, now: Any, tolerance: float = 0.0, key: str = "", free: bool = False
) -> Iterator[Difference]:
    """Where two JSON values differ. free: keys like `FREE` are passed over.

    tolerance: of numbers, relative to the larger one.
    """
    if isinstance(stored, Mapping) and isinstance(now, Mapping):
        for name in dict.fromkeys([*stored, *now]):
            if free and FREE.search(str(name)):
                continue
            pair = stored.get(name, NOTHING), now.get(name, NOTHING)
            yield from differing(*pair, tolerance, f"{key}.{name}".lstrip("."), free)
    elif isinstance(stored, list | tuple) and isinstance(now, list | tuple):
        if len(stored) != len(now):
            yield Difference(f"number of {key}", len(stored), len(now))
        for number, pair in enumerate(zip(stored, now, strict=False)):
            yield from differing(*pair, tolerance, f"{key}[{number}]", free)
    elif _number(stored) and _number(now):
        if not math.isclose(stored, now, rel_tol=tolerance):
            yield Difference(key, stored, now)
    elif stored != now or isinstance(stored, bool) != isinstance(now, bool):
        yield Difference(key, stored, now)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def main(args: Any, overrides: Sequence[str]) -> int:
    """Exit status 0 where every row is as stored, 1 with both values where one is not."""
    if not args.file:
        raise ConfigError("verify: a results file is needed, see docs/experiments.md")
    if args.tolerance < 0:
        raise ConfigError(f"--tolerance={args.tolerance}: allowed is 0 and more")
    file = pathlib.Path(args.file)
    value = read(file)
    stored = chosen(rows_of(value, file), args.row, file)
    if "experiment" in value:
        made = remake(value, file, list(stored), args, overrides)
    else:
        made = rerun(value, file, stored, args, overrides)
    status = 0
    for name, row in made:
        found = list(differing(stored[name], row, args.tolerance, free=True))
        if found:
            status = 1
            print(f"{name}: {len(found)} values differ")
            print("\n".join(f"  {one}" for one in found), flush=True)
        else:
            print(f"{name}: as stored", flush=True)
    return status


def read(file: pathlib.Path) -> dict[str, Any]:
    """A results file; raises WorkdirError for anything else."""
    try:
        value = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise WorkdirError(f"{file}: no results file ({error})") from error
    if not isinstance(value, dict) or "command" not in value:
        raise WorkdirError(f"{file}: no results file, it has no `command`")
    return value


def rows_of(value: Mapping[str, Any], file: pathlib.Path) -> dict[str, dict[str, Any]]:
    """Rows by name, `<data>/<name>` in a file of several data sets."""
    groups = [("", value)]
    if isinstance(value.get("data"), list):
        groups = [(f"{group['data']}/", group) for group in value["data"]]
    found: dict[str, dict[str, Any]] = {}
    for prefix, group in groups:
        for row in group.get("rows") or ():
            if not isinstance(row, dict) or "name" not in row:
                raise WorkdirError(
                    f"{file}: its rows have no `name`, so they are timings and not quality; "
                    "timings are compared by python -m jaxrec.benchmark.compare"
                )
            if prefix + row["name"] in found:
                raise WorkdirError(f"{file}: two rows are called {prefix + row['name']!r}")
            found[prefix + row["name"]] = row
    if not found:
        raise WorkdirError(f"{file}: no results file, it has no `rows`")
    return found


def chosen(
    rows: dict[str, dict[str, Any]], wanted: str, file: pathlib.Path
) -> dict[str, dict[str, Any]]:
    """All rows, or the one that is asked for."""
    if wanted and wanted not in rows:
        raise ConfigError(f"--row={wanted!r}: {file} has {', '.join(map(repr, rows))}")
    return {wanted: rows[wanted]} if wanted else rows


def remake(
    value: Mapping[str, Any],
    file: pathlib.Path,
    names: Sequence[str],
    args: Any,
    overrides: Sequence[str],
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of a table of an experiment, made anew from runs below --runs."""
    value = table.read(file)
    if value["experiment"] not in catalog.EXPERIMENTS:
        known = ", ".join(catalog.EXPERIMENTS)
        raise WorkdirError(f"{file}: experiment {value['experiment']!r} is unknown, known: {known}")
    config = settings.rebuild(value["config"])
    for text in overrides:
        _place(text, ELSEWHERE[:-1])
        settings.override(config, text)
    lab = Lab(config, pathlib.Path(args.runs), _say, train=args.train, fresh=True)
    cells = {cell.name: cell for cell in catalog.EXPERIMENTS[value["experiment"]](lab).cells}
    for name in names:
        if name not in cells:
            raise WorkdirError(f"{file}: row {name!r} is no row of this experiment any more")
    for name in names:
        yield name, table.plain(cells[name].make())


def rerun(
    value: Mapping[str, Any],
    file: pathlib.Path,
    stored: Mapping[str, Mapping[str, Any]],
    args: Any,
    overrides: Sequence[str],
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows that commands write to another --output; each command runs once."""
    for text in overrides:
        _place(text, (*ELSEWHERE, FULL))
    by_command: dict[str, list[str]] = {}
    for name, row in stored.items():
        by_command.setdefault(row.get("command", value["command"]), []).append(name)
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
            made = rows_of(read(output), output)
        for name in names:
            yield name, made.get(name, {})


def _place(text: str, allowed: Sequence[str]) -> None:
    if text.partition("=")[0] not in allowed:
        raise ConfigError(
            f"{text!r}: verify repeats what the file says; places alone may differ "
            f"({', '.join(f'{name}=' for name in allowed)})"
        )


def program(command: str, file: pathlib.Path) -> list[str]:
    """A stored command as arguments: this Python, a program of this project."""
    argv = shlex.split(command)
    if argv[0] != "python" or not PROGRAMS.match(" ".join(argv[1:])):
        raise WorkdirError(
            f"{file}: verify runs `python eval.py`, `python -m jaxrec...` and `python -m "
            f"benchmarks...`; the file was made by {command!r}"
        )
    return [sys.executable, *argv[1:]]


def redirected(argv: Sequence[str], output: pathlib.Path, file: pathlib.Path) -> list[str]:
    """The arguments with another --output; raises WorkdirError where there is none."""
    found = list(argv)
    for number, text in enumerate(found):
        if text.startswith("--output="):
            found[number] = f"--output={output}"
            return found
        if text == "--output" and number + 1 < len(found):
            found[number + 1] = str(output)
            return found
    raise WorkdirError(f"{file}: its command has no --output, so it cannot be made beside it")


def trainings(argv: Sequence[str]) -> list[list[str]]:
    """What trains the runs of an `eval.py` command that are not there.

    The run of `full_workdir` has layout.mode=full, other keys alike, as `eval.py` wants it.
    """
    values = dict(text.split("=", 1) for text in argv[2:] if "=" in text)
    kept = [
        text
        for text in argv[2:]
        if not text.startswith(("--output", "--workdir", "--config.eval.", "--config.layout.mode"))
    ]
    mode = [text for text in argv[2:] if text.startswith("--config.layout.mode=")]
    found = []
    for flag, extra in (("--workdir", mode), (FULL, ["--config.layout.mode=full"])):
        folder = values.get(flag)
        if folder and not pathlib.Path(folder).is_dir():
            found.append([argv[0], "train.py", *kept, *extra, f"--workdir={folder}"])
    return found


def _train(argv: Sequence[str], allowed: bool) -> None:
    if not allowed:
        raise WorkdirError(
            f"{argv[-1].partition('=')[2]}: no such run; --train trains it first (python "
            f"{shlex.join(argv[1:])}), {FULL}= and --workdir= say where runs are"
        )
    run(argv)


def run(argv: Sequence[str]) -> None:
    """A process with its output on standard error; raises WorkdirError when it fails."""
    _say(f"python {shlex.join(argv[1:])}")
    done = subprocess.run(argv, stdout=sys.stderr, check=False)
    if done.returncode:
        raise WorkdirError(
            f"status {done.returncode} of: python {shlex.join(argv[1:])} (its message is above)"
        )


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
