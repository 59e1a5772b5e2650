"""Checks that the number of processes changes nothing: `train.py` as 1 x 8, 2 x 4, 4 x 2 devices.

    python -m benchmarks.multiprocess --output=results/multiprocess.json

The same synthetic run is trained by one process with eight CPU devices, by two with four each and
by four with two. Loss traces must agree to 1e-6 and every figure of the evaluation must be equal.
Then a run of two processes is stopped by SIGTERM to the second process and continued by one
process; another loses a process to SIGKILL and is continued by four. Exit status 1 when a check
fails.
"""

import argparse
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import time

from jaxrec.benchmark import timing
from jaxrec.runtime import checkpoint
from jaxrec.types import Json

ROOT = pathlib.Path(__file__).parents[1]
SHAPES = ((1, 8), (2, 4), (4, 2))  # processes, devices of each
TOLERANCE = 1e-6  # largest difference of a step's loss
TIMEOUT = 60  # seconds without a sign of life after which a process counts as dead
RUN = {
    "data.synthetic.users": 64,
    "data.synthetic.items": 100,
    "data.synthetic.events": 60,
    "data.synthetic.gap": 20,
    "data.synthetic.interests": 8,
    "data.holdout": 2,
    "layout.segment_size": 8,
    "layout.tokens": 2,
    "layout.max_segments": 2,
    "model.width": 16,
    "model.layers": 1,
    "loss.negatives": 32,
    "train.batch_size": 16,
    "train.learning_rate": 1e-3,
    "train.log_every": 1,
    "train.eval_every": 25,
    "train.checkpoint_every": 20,
    "eval.bootstrap": 50,
}


def start(
    folder: pathlib.Path, shape: tuple[int, int], steps: int, cache: str
) -> list[subprocess.Popen]:
    """Starts the processes of a run; each logs to `<folder>.<index>.log`."""
    processes, devices = shape
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    overrides = {**RUN, "train.steps": steps, "train.compilation_cache": cache}
    command = [
        sys.executable,
        "train.py",
        "--config=configs/synthetic.py",
        f"--workdir={folder}",
        f"--peer_timeout={TIMEOUT}",
        *(f"--config.{key}={value}" for key, value in overrides.items()),
    ]
    started = []
    for index in range(processes):
        environment = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "JAX_NUM_CPU_DEVICES": str(devices),
            "PYTHONPATH": str(ROOT),
        }
        flags = [f"--coordinator={address}", f"--processes={processes}", f"--process={index}"]
        with open(log_file(folder, index), "a") as log:
            started.append(
                subprocess.Popen(
                    command + (flags if processes > 1 else ["--coordinator=none"]),
                    cwd=ROOT,
                    env=environment,
                    stdout=log,
                    stderr=log,
                )
            )
    return started


def log_file(folder: pathlib.Path, index: int) -> pathlib.Path:
    """Where process `index` of a run logs."""
    return folder.with_name(f"{folder.name}.{index}.log")


def wait(processes: list[subprocess.Popen], seconds: float) -> list[int]:
    """Exit statuses; when a process does not end, ends all and raises TimeoutError."""
    limit = time.monotonic() + seconds
    try:
        return [p.wait(max(0.1, limit - time.monotonic())) for p in processes]
    except subprocess.TimeoutExpired as error:
        raise TimeoutError(f"a process did not end within {seconds} s") from error
    finally:
        for p in processes:
            p.kill()


def rows(folder: pathlib.Path) -> list[Json]:
    """Complete rows of a run's metrics.jsonl."""
    file = folder / "metrics.jsonl"
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def losses(folder: pathlib.Path) -> dict[int, float]:
    """Loss by step."""
    return {row["step"]: row["train/loss"] for row in rows(folder) if "train/loss" in row}


def figures(folder: pathlib.Path) -> Json:
    """All metrics of the evaluation and of the validations of a run."""
    result = json.loads((folder / "results.json").read_text())
    validations = [
        {k: v for k, v in row.items() if not k.startswith("train/")}
        for row in rows(folder)
        if any(k.startswith("validation/") for k in row)
    ]
    return {"rows": result["rows"], "validations": validations}


def compare(folder: pathlib.Path, reference: pathlib.Path) -> Json:
    """Difference of two runs: loss traces and evaluations."""
    trace, expected = losses(folder), losses(reference)
    same_steps = list(trace) == list(expected)
    return {
        "steps": len(trace),
        "loss_difference": (
            max(abs(trace[step] - expected[step]) for step in expected) if same_steps else None
        ),
        "same_evaluation": figures(folder) == figures(reference),
    }


def until(folder: pathlib.Path, step: int, processes: list[subprocess.Popen]) -> None:
    """Waits until the run has logged `step`."""
    while max(losses(folder), default=0) < step:
        if any(p.poll() is not None for p in processes):
            raise RuntimeError(f"a process ended before step {step}: {log_file(folder, 0)}")
        time.sleep(0.02)


def signalled(
    folder: pathlib.Path, number: signal.Signals, step: int, steps: int, cache: str
) -> Json:
    """A run of two processes whose second one gets a signal once `step` is logged."""
    processes = start(folder, (2, 4), steps, cache)
    until(folder, step, processes)
    processes[1].send_signal(number)
    sent = time.monotonic()
    status = wait(processes, 300)
    return {
        "exit_status": status,
        "seconds_to_end": time.monotonic() - sent,
        "saved": checkpoint.steps(folder / "checkpoints"),
        "last_logged": max(losses(folder)),
    }


class Proof:
    """Runs everything in a scratch folder.

    rows: of the result. failures: checks that failed.
    """

    def __init__(self, scratch: pathlib.Path, steps: int) -> None:
        self.scratch, self.steps = scratch, steps
        self.cache = str(scratch / "cache")
        self.reference = scratch / "1x8"
        self.rows: list[Json] = []
        self.failures: list[str] = []

    def check(self, passed: bool, text: str) -> None:
        """Notes a failed check."""
        if not passed:
            self.failures.append(text)
            print(f"FAILED: {text}", flush=True)

    def train(self, name: str, folder: pathlib.Path, shape: tuple[int, int]) -> None:
        """Trains (or continues) a run and compares it with the reference."""
        begin = time.monotonic()
        status = wait(start(folder, shape, self.steps, self.cache), 900)
        self.check(not any(status), f"{name}: exit status {status}")
        row: Json = {
            "run": name,
            "processes": shape[0],
            "devices_each": shape[1],
            "status": status,
        }
        if folder != self.reference and not any(status):
            row |= compare(folder, self.reference)
            difference = row["loss_difference"]
            agree = difference is not None and difference <= TOLERANCE
            self.check(agree, f"{name}: losses differ by {difference}")
            self.check(bool(row["same_evaluation"]), f"{name}: another evaluation")
        self.rows.append(row)
        print(f"{name}: {time.monotonic() - begin:.0f} s  {row}", flush=True)

    def shapes(self) -> None:
        """Trains the run with every number of processes."""
        for processes, devices in SHAPES:
            name = f"{processes} x {devices}"
            self.train(name, self.scratch / name.replace(" ", ""), (processes, devices))

    def stopped(self) -> None:
        """SIGTERM to one of two processes: both save and end; one process continues."""
        folder, step = self.scratch / "stopped", self.steps // 2 + 2
        row = signalled(folder, signal.SIGTERM, step, self.steps, self.cache)
        self.check(row["exit_status"] == [0, 0], f"SIGTERM: exit status {row['exit_status']}")
        self.check(row["saved"][-1] >= step, f"SIGTERM: saved {row['saved']} after step {step}")
        self.rows.append({"run": "SIGTERM to process 1 of 2 x 4", **row})
        print(self.rows[-1], flush=True)
        self.train("stopped as 2 x 4, continued as 1 x 8", folder, (1, 8))

    def killed(self) -> None:
        """SIGKILL of one of two processes: the other ends with a message; four continue."""
        folder, step = self.scratch / "killed", self.steps // 2 + 2
        row = signalled(folder, signal.SIGKILL, step, self.steps, self.cache)
        log = log_file(folder, 0).read_text()
        message = "lost another process" in log or "another task died" in log
        ended = message and row["exit_status"][0] not in (0, -9)
        self.check(ended, "SIGKILL: the other process said nothing")
        in_time = row["seconds_to_end"] < 2 * TIMEOUT
        self.check(in_time, f"SIGKILL: {row['seconds_to_end']:.0f} s to end")
        self.rows.append({"run": "SIGKILL of process 1 of 2 x 4", "message": message, **row})
        print(self.rows[-1], flush=True)
        self.train("killed as 2 x 4, continued as 4 x 2", folder, (4, 2))


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.multiprocess", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--output", default="", help="JSON file of the result")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        proof = Proof(pathlib.Path(scratch), args.steps)
        proof.shapes()
        proof.stopped()
        proof.killed()
    report = timing.report(
        "benchmarks.multiprocess",
        proof.rows,
        settings=RUN,
        tolerance=TOLERANCE,
        failures=proof.failures,
    )
    timing.save(report, args.output)
    if proof.failures:
        sys.exit("\n".join(proof.failures))


if __name__ == "__main__":
    main()
