"""Proof that processes only divide the work: `train.py` as 1 x 8, 2 x 4 and 4 x 2 devices.

    python -m benchmarks.multiprocess --output=results/multiprocess.json

The same synthetic run is trained by one process with eight (CPU) devices, two with four and four
with two. Loss traces must agree to 1e-6 and every figure of the evaluation must be equal. Then a
run of two processes is stopped by SIGTERM to the second one and continued by one process, and
another loses a process to SIGKILL and is continued by four. Exit status 1 when a check fails.
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
from typing import Any

from jaxrec.benchmark import timing
from jaxrec.runtime import checkpoint

ROOT = pathlib.Path(__file__).parents[2]
SHAPES = ((1, 8), (2, 4), (4, 2))  # processes, devices of each
TOLERANCE = 1e-6  # of a step's loss
TIMEOUT = 60  # seconds after which a silent process counts as dead
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
    """The processes of a run, each with its messages in `<folder>.<index>.log`."""
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
        place = [f"--coordinator={address}", f"--processes={processes}", f"--process={index}"]
        with open(log_file(folder, index), "a") as log:
            started.append(
                subprocess.Popen(
                    command + (place if processes > 1 else ["--coordinator=none"]),
                    cwd=ROOT,
                    env=environment,
                    stdout=log,
                    stderr=log,
                )
            )
    return started


def log_file(folder: pathlib.Path, index: int) -> pathlib.Path:
    return folder.with_name(f"{folder.name}.{index}.log")


def wait(processes: list[subprocess.Popen], seconds: float) -> list[int]:
    """Exit statuses; raises TimeoutError (and ends the processes) when one does not end."""
    limit = time.monotonic() + seconds
    try:
        return [p.wait(max(0.1, limit - time.monotonic())) for p in processes]
    except subprocess.TimeoutExpired as error:
        raise TimeoutError(f"a process did not end within {seconds} s") from error
    finally:
        for p in processes:
            p.kill()


def rows(folder: pathlib.Path) -> list[dict[str, Any]]:
    file = folder / "metrics.jsonl"
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def losses(folder: pathlib.Path) -> dict[int, float]:
    return {row["step"]: row["train/loss"] for row in rows(folder) if "train/loss" in row}


def figures(folder: pathlib.Path) -> dict[str, Any]:
    """What the evaluation says of the trained model, validations of the run included."""
    result = json.loads((folder / "results.json").read_text())
    validations = [
        {k: v for k, v in row.items() if not k.startswith("train/")}
        for row in rows(folder)
        if any(k.startswith("validation/") for k in row)
    ]
    return {"rows": result["rows"], "validations": validations}


def compare(folder: pathlib.Path, whole: pathlib.Path) -> dict[str, Any]:
    here, there = losses(folder), losses(whole)
    same_steps = list(here) == list(there)
    return {
        "steps": len(here),
        "loss_difference": max(abs(here[s] - there[s]) for s in there) if same_steps else None,
        "same_evaluation": figures(folder) == figures(whole),
    }


def until(folder: pathlib.Path, step: int, processes: list[subprocess.Popen]) -> None:
    """Waits until the run has logged `step`."""
    while max(losses(folder), default=0) < step:
        if any(p.poll() is not None for p in processes):
            raise RuntimeError(f"a process ended before step {step}: {log_file(folder, 0)}")
        time.sleep(0.02)


def signalled(
    folder: pathlib.Path, number: signal.Signals, step: int, steps: int, cache: str
) -> dict[str, Any]:
    """Two processes; the second one gets a signal once `step` is logged."""
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


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.multiprocess", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--output", default="", help="JSON file of the result")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        result, failures = prove(pathlib.Path(scratch), args.steps)
    timing.save(
        timing.report("multiprocess", result, settings=RUN, tolerance=TOLERANCE, failures=failures),
        args.output,
    )
    if failures:
        sys.exit("\n".join(failures))


def prove(scratch: pathlib.Path, steps: int) -> tuple[list[dict[str, Any]], list[str]]:
    """All runs in a scratch folder: (what was found, which checks failed)."""
    cache = str(scratch / "cache")
    found: list[dict[str, Any]] = []
    failures: list[str] = []

    def check(good: bool, text: str) -> None:
        if not good:
            failures.append(text)
            print(f"FAILED: {text}", flush=True)

    def run(name: str, folder: pathlib.Path, shape: tuple[int, int]) -> None:
        begin = time.monotonic()
        status = wait(start(folder, shape, steps, cache), 900)
        check(not any(status), f"{name}: exit status {status}")
        row: dict[str, Any] = {
            "run": name,
            "processes": shape[0],
            "devices_each": shape[1],
            "status": status,
        }
        if folder != whole and not any(status):
            row |= compare(folder, whole)
            apart = row["loss_difference"]
            check(apart is not None and apart <= TOLERANCE, f"{name}: losses differ by {apart}")
            check(bool(row["same_evaluation"]), f"{name}: another evaluation")
        found.append(row)
        print(f"{name}: {time.monotonic() - begin:.0f} s  {row}", flush=True)

    whole = scratch / "1x8"
    for processes, devices in SHAPES:
        name = f"{processes} x {devices}"
        run(name, scratch / name.replace(" ", ""), (processes, devices))

    middle, step = scratch / "stopped", steps // 2 + 2
    row: Any = signalled(middle, signal.SIGTERM, step, steps, cache)
    check(row["exit_status"] == [0, 0], f"SIGTERM: exit status {row['exit_status']}")
    check(row["saved"][-1] >= step, f"SIGTERM: saved {row['saved']} after step {step}")
    found.append({"run": "SIGTERM to process 1 of 2 x 4", **row})
    print(found[-1], flush=True)
    run("stopped as 2 x 4, continued as 1 x 8", middle, (1, 8))

    killed = scratch / "killed"
    row = signalled(killed, signal.SIGKILL, step, steps, cache)
    message = log_file(killed, 0).read_text()
    told = "lost another process" in message or "another task died" in message
    check(told and row["exit_status"][0] not in (0, -9), "SIGKILL: the other process said nothing")
    check(row["seconds_to_end"] < 2 * TIMEOUT, f"SIGKILL: {row['seconds_to_end']:.0f} s to end")
    found.append({"run": "SIGKILL of process 1 of 2 x 4", "message": told, **row})
    print(found[-1], flush=True)
    run("killed as 2 x 4, continued as 4 x 2", killed, (4, 2))
    return found, failures


if __name__ == "__main__":
    main()
