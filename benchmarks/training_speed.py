"""Steps a second of `train.py` here, with and without huge pages, and at an earlier revision.

    python -m benchmarks.training_speed --revision=758e47b --output=results/training_speed.json

Every turn starts each program anew, on its own run, and reads the rates and losses that it logged.
What is before the first steps (data, compilation) does not count.
"""

import argparse
import io
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile

from jaxrec.benchmark import timing
from jaxrec.errors import ConfigError
from jaxrec.runtime import huge_pages
from jaxrec.types import Json

ROOT = pathlib.Path(__file__).parents[1]
LOG_EVERY = 10
METRICS = "metrics.jsonl"


def checkout(revision: str, folder: pathlib.Path) -> None:
    """The files of another revision of this repository."""
    git = ["git", "-C", str(ROOT), "archive", revision]
    done = subprocess.run(git, capture_output=True)
    if done.returncode:
        raise ConfigError(f"--revision={revision}: {done.stderr.decode().strip()}")
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as files:
        files.extractall(folder, filter="data")


def train(
    checkout: pathlib.Path, workdir: pathlib.Path, args: argparse.Namespace, tunables: str
) -> tuple[float, list[float]]:
    """(median seconds of a step in the second half, losses) of a new run."""
    shutil.rmtree(workdir / "checkpoints", ignore_errors=True)
    (workdir / METRICS).unlink(missing_ok=True)
    command = [
        sys.executable,
        "train.py",
        f"--config={args.config}",
        f"--workdir={workdir}",
        f"--config.train.steps={args.steps}",
        f"--config.train.log_every={LOG_EVERY}",
        f"--config.train.eval_every={args.steps}",
        f"--config.train.checkpoint_every={args.steps}",
        "--config.eval.bootstrap=1",
    ]
    # an empty GLIBC_TUNABLES lets the program choose
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(checkout)}
    environment[huge_pages.VARIABLE] = tunables
    done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise ConfigError(f"{' '.join(command)}: {done.stderr.strip()[-500:]}")
    lines = [json.loads(line) for line in (workdir / METRICS).read_text().splitlines()]
    steps = [line for line in lines if "steps_per_s" in line]
    seconds = statistics.median(1 / line["steps_per_s"] for line in steps[len(steps) // 2 :])
    return seconds, [line["train/loss"] for line in steps]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.training_speed", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument("--config", default="configs/quickstart.py", help="a recipe of both")
    parser.add_argument("--revision", default="", help="an earlier commit; default: none")
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--repeats", type=int, default=3, help="runs of each")
    parser.add_argument("--output", default="", help="JSON file of the result")
    args = parser.parse_args()
    try:
        result = measure(args)
    except ConfigError as error:
        parser.error(str(error))
    timing.save(result, args.output)


def measure(args: argparse.Namespace) -> Json:
    """The report; raises ConfigError for a revision that is not there and a program that fails."""
    without = f"{huge_pages.TUNABLE}=0"
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        programs = {"here": (ROOT, ""), "here, small pages": (ROOT, without)}
        if args.revision:
            checkout(args.revision, folder / "earlier")
            programs[args.revision] = (folder / "earlier", without)
        samples: dict[str, list[float]] = {name: [] for name in programs}
        losses = {}
        for turn in range(args.repeats):
            for number, (name, (place, tunables)) in enumerate(programs.items()):
                run = folder / f"run{number}"
                seconds, losses[name] = train(place, run, args, tunables)
                samples[name].append(seconds)
                print(f"{turn + 1}: {name}: {samples[name][-1] * 1e3:.0f} ms", flush=True)
    rows: list[Json] = []
    for name, values in samples.items():
        median, low, high = timing.times_faster(values, samples["here"])
        faster = {"median": median, "low": low, "high": high}
        rows.append({"name": name, **timing.summary(values), "here_is_times_faster": faster})
        print(f"{name}: {rows[-1]['median_s'] * 1e3:.0f} ms a step, here {median:.2f} x")
    facts = {
        "config": args.config,
        "huge_pages": huge_pages.useful(),
        "same_losses": losses["here"] == losses["here, small pages"],
    }
    print(f"the same losses with and without huge pages: {facts['same_losses']}")
    return timing.report("benchmarks.training_speed", rows, **facts)


if __name__ == "__main__":
    main()
