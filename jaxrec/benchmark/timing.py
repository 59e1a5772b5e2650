"""Timings that can be compared: compiled first, interleaved, synchronised, medians and spread."""

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax


def interleaved(
    functions: Mapping[str, Callable[[], Any]], *, repeats: int = 7, warmup: int = 2
) -> dict[str, dict[str, float]]:
    """Seconds of each function, run in turn (A B C A B C ...), so that a machine whose speed
    drifts slows all of them alike.

    Each call is waited for (`block_until_ready`) and its inputs already lie on the device.
    Returns per name: median, min, max and the number of counted runs.
    """
    samples: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(warmup + repeats):
        for name, function in functions.items():
            start = time.perf_counter()
            jax.block_until_ready(function())
            elapsed = time.perf_counter() - start
            if turn >= warmup:
                samples[name].append(elapsed)
    return {
        name: {
            "median_s": statistics.median(values),
            "min_s": min(values),
            "max_s": max(values),
            "runs": len(values),
        }
        for name, values in samples.items()
    }


def peak_bytes(compiled: Any) -> int:
    """Bytes a compiled function needs at once by XLA's plan: arguments, results, temporaries."""
    plan = compiled.memory_analysis()
    used = plan.argument_size_in_bytes + plan.output_size_in_bytes + plan.temp_size_in_bytes
    return int(used - plan.alias_size_in_bytes)


def report(name: str, rows: Any, **facts: Any) -> dict[str, Any]:
    """A result with what is needed to repeat it: command, machine, versions."""
    return {
        "benchmark": name,
        "command": " ".join(["python -m", f"jaxrec.benchmark.{name}", *sys.argv[1:]]),
        "machine": {
            "devices": [str(d.device_kind) for d in jax.devices()],
            "cpu_count": _cpus(),
            "python": platform.python_version(),
            "jax": jax.__version__,
        },
        **facts,
        "rows": rows,
    }


def save(result: dict[str, Any], path: str) -> None:
    """Writes a report as JSON; nothing for an empty path."""
    if path:
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(result, indent=2) + "\n")


def _cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
