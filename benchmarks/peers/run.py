"""Trains every cell that is missing, one after the other, each in its own environment.

    python -m benchmarks.peers.run --runs=runs/peers \
        --rectools-python=RECTOOLS/bin/python --recbole-python=RECBOLE/bin/python \
        --ml-latest-small=FOLDER --ml-100k=FOLDER_OR_WHEEL --cores=0

A finished cell is left alone: the same command goes on after an interruption, with the cell that
was cut off from its start. --only names rows, --data data sets; without a peer's environment its
rows are refused, unless --only leaves them out. Two of these may run beside each other with other
--cores and other rows.
"""

import argparse
import os
import pathlib
import subprocess
import sys
import time

from benchmarks.peers import exchange, options, recipes

SECONDS = {"completejourney": 240.0, "ml-latest-small": 80.0, "ml-100k": 80.0}


def cells(args: argparse.Namespace) -> list[tuple[str, str, int]]:
    """(data, row, seed) of every cell that is wanted: seed after seed, so that a stop early on
    leaves whole rows of fewer seeds.
    """
    return [
        (data, name, seed)
        for data in args.data
        for seed in (int(s) for s in args.seeds.split(","))
        for name in (*recipes.OURS[data], *recipes.PEERS)
        if not args.only or name in args.only
    ]


def command(
    args: argparse.Namespace, data: str, name: str, seed: int, seconds: dict[str, float]
) -> list[str]:
    """The command line of a cell. Raises SystemExit without the environment it needs."""
    shared = [f"--runs={args.runs}", f"--data={data}", f"--name={name}", f"--seed={seed}"]
    shared += [f"--clock={args.clock}", f"--cores={args.cores}", f"--seconds={seconds[data]:g}"]
    if name not in recipes.PEERS:
        sources = [f"--ml-latest-small={args.ml_latest_small}", f"--ml-100k={args.ml_100k}"]
        return [sys.executable, "-m", "benchmarks.peers.ours", *shared, *sources]
    module = recipes.PEERS[name]
    python = {"rectools_models": args.rectools_python, "recbole_models": args.recbole_python}
    if not python[module]:
        raise SystemExit(f"{name}: give --{module.partition('_')[0]}-python, or rows with --only")
    return [python[module], "-m", f"benchmarks.peers.{module}", *shared]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers.run", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument("--runs", type=pathlib.Path, default=pathlib.Path("runs/peers"))
    parser.add_argument("--data", nargs="+", choices=recipes.DATA, default=list(recipes.DATA))
    parser.add_argument("--only", nargs="+", default=[], help="rows to make")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument(
        "--seconds", nargs="+", default=[], help="DATA=S, training seconds of a cell"
    )
    parser.add_argument("--rectools-python", default="")
    parser.add_argument("--recbole-python", default="")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--cores", default="", help="processor numbers, such as 0,1; empty: all")
    parser.add_argument("--dry", action="store_true", help="print the commands, run nothing")
    recipes.add_sources(parser)
    args = parser.parse_args()
    seconds = SECONDS | {k: float(v) for k, v in options.changes(args.seconds).items()}
    missing = [
        (one, command(args, *one, seconds))
        for one in cells(args)
        if not (exchange.cell_folder(args.runs, *one) / exchange.CELL).is_file()
    ]
    environment = os.environ | {"JAX_PLATFORMS": os.environ.get("JAX_PLATFORMS", "cpu")}
    for data in args.data:
        if not (args.runs / data / exchange.EVENTS).is_file():
            sources = [f"--ml-latest-small={args.ml_latest_small}", f"--ml-100k={args.ml_100k}"]
            export = [sys.executable, "-m", "benchmarks.peers.export", f"--runs={args.runs}"]
            missing.insert(0, ((data, "export", 0), [*export, f"--data={data}", *sources]))
    failed = 0
    for number, ((data, name, seed), line) in enumerate(missing, 1):
        if (exchange.cell_folder(args.runs, data, name, seed) / exchange.CELL).is_file():
            continue  # a command beside this one made it meanwhile
        print(f"[{number}/{len(missing)}] {data} {name} seed {seed}", flush=True)
        if args.dry:
            print("   ", " ".join(line))
            continue
        begin = time.monotonic()
        done = subprocess.run(line, env=environment, check=False)
        failed += done.returncode != 0
        print(f"    {time.monotonic() - begin:.0f} s, exit {done.returncode}", flush=True)
    if failed:
        raise SystemExit(f"{failed} cells failed; the same command tries them again")


if __name__ == "__main__":
    main()
