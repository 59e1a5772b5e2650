"""Timings that can be compared: compiled first, interleaved, synchronised, medians and spread."""

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax


def interleaved(
    functions: Mapping[str, Callable[[], Any]],
    *,
    repeats: int = 7,
    warmup: int = 2,
    least_s: float = 0.0,
) -> dict[str, dict[str, float]]:
    """Per name the `summary` of `turns`."""
    samples = turns(functions, repeats=repeats, warmup=warmup, least_s=least_s)
    return {name: summary(values) for name, values in samples.items()}


def turns(
    functions: Mapping[str, Callable[[], Any]],
    *,
    repeats: int = 7,
    warmup: int = 2,
    least_s: float = 0.0,
) -> dict[str, list[float]]:
    """Seconds of a call of each function, run in turn (A B C A B C ...), so that a machine whose
    speed drifts slows all of them alike.

    Each call is waited for (`block_until_ready`) and its inputs already lie on the device.
    least_s: a function is called again until its turn has lasted so long, and the turn's mean
    counts: a short call would otherwise see a single moment of a machine that does other things
    too, where a long one sees their average. The first `warmup` turns are left out.
    """
    samples: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(warmup + repeats):
        for name, function in functions.items():
            calls, elapsed = 0, 0.0
            start = time.perf_counter()
            while not calls or elapsed < least_s:
                jax.block_until_ready(function())
                elapsed, calls = time.perf_counter() - start, calls + 1
            if turn >= warmup:
                samples[name].append(elapsed / calls)
    return samples


def summary(values: Sequence[float]) -> dict[str, float]:
    """Median, min, max and number of seconds."""
    return {
        "median_s": statistics.median(values),
        "min_s": min(values),
        "max_s": max(values),
        "runs": len(values),
    }


def times_faster(slow: Sequence[float], fast: Sequence[float]) -> tuple[float, float, float]:
    """Median and quartiles, over turns, of `slow` / `fast` within a turn."""
    ratios = sorted(a / b for a, b in zip(slow, fast, strict=True))
    if len(ratios) == 1:
        return (ratios[0],) * 3
    low, median, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return median, low, high


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
