"""Arguments and facts that every command that makes a cell shares."""

import argparse
import ast
import os
import pathlib
import platform
import shlex
from collections.abc import Sequence

from benchmarks.peers import recipes
from benchmarks.peers.exchange import Json


def add(parser: argparse.ArgumentParser) -> None:
    """Arguments of every command that makes a cell."""
    parser.add_argument("--runs", type=pathlib.Path, default=pathlib.Path("runs/peers"))
    parser.add_argument("--data", choices=recipes.DATA, required=True)
    parser.add_argument("--name", required=True, help="row of the table")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--clock", choices=("wall", "cpu"), default="wall", help="what training seconds are"
    )
    parser.add_argument("--cores", default="", help="processor numbers, such as 0,1; empty: all")
    parser.add_argument("--set", nargs="*", default=[], help="KEY=VALUE, another setting")


def add_training(parser: argparse.ArgumentParser) -> None:
    """Arguments of peers, which train for a time instead of a number of steps."""
    parser.add_argument("--seconds", type=float, required=True, help="training seconds")
    parser.add_argument("--validations", type=int, default=10, help="within these seconds")
    parser.add_argument("--length", type=int, default=0, help="newest events read; 0: recommended")


def use_cores(cores: str) -> int:
    """Keeps this process on these cores; returns their number.

    Call it before a library starts its threads.
    """
    if cores:
        os.sched_setaffinity(0, {int(core) for core in cores.split(",")})
    count = len(os.sched_getaffinity(0))
    os.environ["OMP_NUM_THREADS"] = str(count)
    return count


def changes(texts: Sequence[str]) -> Json:
    """KEY=VALUE with Python values; other values stay text."""
    values = {}
    for text in texts:
        key, _, value = text.partition("=")
        try:
            values[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            values[key] = value
    return values


PLACES = ("--runs", "--rectools-python", "--recbole-python", "--ml-latest-small", "--ml-100k")


def command_line(command: str, arguments: Sequence[str]) -> str:
    """The command line to repeat, without this machine's folders."""
    kept = [text for text in arguments if text.partition("=")[0] not in PLACES]
    return shlex.join(["python", "-m", f"benchmarks.peers.{command}", *kept])


def facts(
    args: argparse.Namespace,
    digest: str,
    length: int,
    settings: Json,
    versions: dict[str, str],
) -> Json:
    """What `cell.json` says about how a cell was made."""
    return {
        "name": args.name,
        "data": args.data,
        "seed": args.seed,
        "digest": digest,
        "length": length,
        "settings": settings,
        "clock": args.clock,
        "threads": args.threads,
        "versions": {"python": platform.python_version(), **versions},
    }
