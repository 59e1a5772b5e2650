"""Runs before and after a change of the code: is every step the same?

    python -m benchmarks.traces runs/before runs/after --output=results/restructuring/traces.json

Both folders hold working directories of `train.py`; those of one name belong together. Train them
from two checkouts with the same settings and `--config.train.log_every=1`. Loss and gradient norm
of every step and every validation are compared, relative to the value before. Exit status 1 says
that a loss differs by more than --limit, or that steps are missing.
"""

import argparse
import json
import pathlib
import sys
from collections.abc import Mapping, Sequence

import numpy as np

from jaxrec.benchmark import timing
from jaxrec.runtime import metrics_writer, workdir
from jaxrec.types import Json

LOSS, GRAD_NORM, VALIDATION = "train/loss", "train/grad_norm", "validation/"
Trace = Mapping[tuple[int, str], float]  # (step, key) -> value


def read(folder: pathlib.Path) -> Trace:
    """Losses, gradient norms and validation metrics of a run."""
    rows = metrics_writer.read_metrics(folder / workdir.METRICS)
    return {
        (row["step"], key): value
        for row in rows
        for key, value in row.items()
        if key in (LOSS, GRAD_NORM) or key.startswith(VALIDATION)
    }


def compare(before: Trace, after: Trace) -> Json:
    """Steps, values on one side alone, and the largest relative difference of every kind."""
    common = before.keys() & after.keys()

    def largest(kind: str) -> float:
        gaps = [
            abs(after[place] - before[place]) / (abs(before[place]) or 1.0)
            for place in common
            if place[1].startswith(kind)
        ]
        return float(np.max(gaps, initial=0.0))  # NaN if one is

    return {
        "steps": sum(key == LOSS for _, key in common),
        "unmatched": len(before.keys() ^ after.keys()),
        "identical": all(before[place] == after[place] for place in common),
        "loss": largest(LOSS),
        "grad_norm": largest(GRAD_NORM),
        "validation": largest(VALIDATION),
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.traces", description="Compares the steps of runs, by name."
    )
    parser.add_argument("before", type=pathlib.Path, help="folder of working directories")
    parser.add_argument("after", type=pathlib.Path, help="folder of working directories")
    parser.add_argument("--limit", type=float, default=1e-6, help="of the losses (default 1e-6)")
    parser.add_argument("--output", default="", help="JSON file")
    args = parser.parse_args(argv)
    runs = [path.parent for path in sorted(args.before.glob(f"*/{workdir.METRICS}"))]
    if not runs:
        parser.error(f"{args.before}: no working directory with {workdir.METRICS}")
    rows: list[Json] = []
    for run in runs:
        row = {"run": run.name} | compare(read(run), read(args.after / run.name))
        same = row["steps"] > 0 and not row["unmatched"] and row["loss"] <= args.limit
        rows.append(row | {"same": same})
        print(json.dumps(rows[-1]))
    timing.save(timing.report("benchmarks.traces", rows), args.output)
    return 0 if all(row["same"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
