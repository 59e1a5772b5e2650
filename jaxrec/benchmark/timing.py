"""Timings that can be compared: compiled first, interleaved, synchronised, medians and spread."""

import json
import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax

from jaxrec.runtime import huge_pages, workdir
from jaxrec.types import Json


def interleaved(
    functions: Mapping[str, Callable[[], object]],
    *,
    repeats: int = 7,
    warmup: int = 2,
    min_turn_s: float = 0.0,
) -> dict[str, dict[str, float]]:
    """Per name the `summary` of `turns`."""
    samples = turns(functions, repeats=repeats, warmup=warmup, min_turn_s=min_turn_s)
    return {name: summary(values) for name, values in samples.items()}


def turns(
    functions: Mapping[str, Callable[[], object]],
    *,
    repeats: int = 7,
    warmup: int = 2,
    min_turn_s: float = 0.0,
    untimed: int = 0,
) -> dict[str, list[float]]:
    """Seconds per call of each function, one value per turn.

    Functions run in turn (A B C A B C ...), so that a machine whose speed drifts slows all of
    them alike. Each call is waited for (`block_until_ready`); inputs should already be on the
    device. The first `warmup` turns are left out.

    min_turn_s: a function is called again until its turn has lasted this long, and the turn's mean
    counts. A single short call would measure one moment of a busy machine, not the average.

    untimed: calls at the start of a turn that do not count. In use a program follows itself; here
    it follows another one, whose gigabytes have pushed its own out of the caches.
    """
    samples: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(warmup + repeats):
        for name, function in functions.items():
            for _ in range(untimed):
                jax.block_until_ready(function())
            calls, elapsed = 0, 0.0
            start = time.perf_counter()
            while not calls or elapsed < min_turn_s:
                jax.block_until_ready(function())
                elapsed, calls = time.perf_counter() - start, calls + 1
            if turn >= warmup:
                samples[name].append(elapsed / calls)
    return samples


def summary(values: Sequence[float]) -> dict[str, float]:
    """Median, min and max of seconds, and how many there are.

    >>> summary([2.0, 1.0, 4.0])
    {'median_s': 2.0, 'min_s': 1.0, 'max_s': 4.0, 'runs': 3}
    """
    return {
        "median_s": statistics.median(values),
        "min_s": min(values),
        "max_s": max(values),
        "runs": len(values),
    }


def times_faster(slow: Sequence[float], fast: Sequence[float]) -> tuple[float, float, float]:
    """(median, lower and upper quartile) over turns of `slow` / `fast` within a turn.

    >>> times_faster([8.0, 80.0, 8.8], [1.0, 10.0, 1.0])
    (8.0, 8.0, 8.4)
    """
    ratios = sorted(a / b for a, b in zip(slow, fast, strict=True))
    if len(ratios) == 1:
        return (ratios[0],) * 3
    low, median, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return median, low, high


def peak_bytes(compiled: jax.stages.Compiled) -> int:
    """Planned peak memory of a compiled function: arguments, results and temporaries."""
    plan = compiled.memory_analysis()
    assert plan is not None
    used = plan.argument_size_in_bytes + plan.output_size_in_bytes + plan.temp_size_in_bytes
    return int(used - plan.alias_size_in_bytes)


def report(program: str, rows: Sequence[Json] | Json, *, kind: str = "", **facts: object) -> Json:
    """A result with what is needed to repeat it: command, machine, versions.

    program: the module that ran, as in `python -m PROGRAM`. kind: name of the benchmark,
    default the last part of `program`.
    """
    return {
        "benchmark": kind or program.rpartition(".")[2],
        "command": shlex.join(["python", "-m", program, *sys.argv[1:]]),
        "machine": {
            "devices": [str(d.device_kind) for d in jax.devices()],
            "cpu_count": _cpus(),
            "huge_pages": huge_pages.switched_on(os.environ),
            "python": platform.python_version(),
            "jax": jax.__version__,
        },
        **facts,
        "rows": rows,
    }


def save(result: Json, path: str) -> None:
    """Writes a report as JSON; an empty path writes nothing."""
    if path:
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        workdir.write_text(target, json.dumps(result, indent=2) + "\n")


def _cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
