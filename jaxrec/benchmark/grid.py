"""Cells of the benchmark: measured in turn, stored when done, skipped when stored."""

import contextlib
import dataclasses
import json
import os
import pathlib
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from jaxrec.benchmark import timing
from jaxrec.benchmark.grid_config import WITH_TOKENS, GridConfig, key_of
from jaxrec.benchmark.grid_methods import Request, Shape, request, training

TIMING = (
    "p50, p90, p99: wall time of one request from NumPy arrays on the host to query vectors on "
    "the device, waited for (block_until_ready); input transfer, and the decoding of stored "
    "rows, are counted; reading the store and ranking the catalog are not. Methods of a shape "
    "run in turn (A B C A B C ...) after two rounds that are not counted; ratios are medians over "
    "rounds of the ratio within a round, with quartiles. Training: inputs on the device, "
    "optimizer and dropout included, median of the rounds. peak_bytes: XLA's plan, arguments, "
    "results and temporaries. flops_xla: XLA's count of the compiled program. flops_analytic: "
    "products of visible pairs and projections."
)
TOO_LARGE = "out_of_memory"


class PlanTooLarge(MemoryError):
    """XLA's plan does not fit: the call would end the process instead of raising."""


def available_bytes() -> int | None:
    """Memory that the first device has left; None where nobody tells."""
    stats = jax.devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return int(stats["bytes_limit"] - stats.get("bytes_in_use", 0))
    info = pathlib.Path("/proc/meminfo")
    if jax.devices()[0].platform != "cpu" or not info.exists():
        return None
    lines = dict(line.split(":", 1) for line in info.read_text().splitlines() if ":" in line)
    return int(lines["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in lines else None


def check_fits(compiled: Any) -> int:
    """Planned peak bytes. Raises PlanTooLarge when more than the device has left."""
    needed, left = timing.peak_bytes(compiled), available_bytes()
    if left is not None and needed > left:
        raise PlanTooLarge(f"the plan needs {needed:,} bytes, {left:,} are left on the device")
    return needed


def status_of(error: Exception) -> str:
    """`out_of_memory` or `failed`."""
    memory = isinstance(error, MemoryError) or any(
        text in str(error).lower() for text in ("resource_exhausted", "out of memory")
    )
    return TOO_LARGE if memory else "failed"


def in_turn(
    calls: dict[Any, Callable[[], Any]], seconds: float, rounds: int
) -> tuple[dict[Any, list[float]], dict[Any, Exception]]:
    """Seconds of every call, round by round, until the time is used up, 3 rounds at least.

    A call that raises drops out with its error.
    """
    samples: dict[Any, list[float]] = {name: [] for name in calls}
    errors: dict[Any, Exception] = {}
    started, counted = 0.0, 0
    for turn in range(-2, rounds):
        if turn == 0:
            started = time.perf_counter()
        for name, call in calls.items():
            if name in errors:
                continue
            begin = time.perf_counter()
            try:
                jax.block_until_ready(call())
            except Exception as error:
                errors[name] = error
                continue
            if turn >= 0:
                samples[name].append(time.perf_counter() - begin)
        counted = max(turn + 1, 0)
        if counted >= 3 and time.perf_counter() - started > seconds:
            break
    return samples, errors


def cells(config: GridConfig) -> list[tuple[str, int]]:
    """(method, tokens) of a shape; 0 tokens where a method has none."""
    return [
        (method, tokens)
        for method in config.methods
        for tokens in (config.tokens if method in WITH_TOKENS else (0,))
    ]


def measure(config: GridConfig, shape: Shape, batch: int) -> list[dict[str, Any]]:
    """Rows of every method for one shape and batch size, timed in turn."""
    table: dict[tuple[str, int], dict[str, Any]] = {}
    requests: dict[tuple[str, int], Request] = {}
    for cell in cells(config):
        row = table[cell] = blank(shape, cell, batch)
        try:
            made = request(config, *_args(cell, shape), batch)
            row["flops_analytic"], row["state_bytes"] = made.flops, made.state_bytes
            row["flops_xla"] = float((made.compiled.cost_analysis() or {}).get("flops", 0.0))
            row["peak_bytes"] = timing.peak_bytes(made.compiled)
            check_fits(made.compiled)
            requests[cell] = made
        except Exception as error:
            fail(row, error)
    calls = {cell: made.call for cell, made in requests.items()}
    samples, errors = in_turn(calls, config.seconds, config.rounds)
    for cell, problem in errors.items():
        fail(table[cell], problem)
    base = ("full", 0)
    for cell in calls:
        if cell in errors:
            continue
        row, taken = table[cell], np.asarray(samples[cell])
        for q in (50, 90, 99):
            row[f"p{q}_ms"] = float(np.percentile(taken, q)) * 1e3
        row["users_per_s"] = batch / float(np.median(taken))
        row["rounds_ms"] = [round(1e3 * float(t), 5) for t in taken]
        if base in calls and base not in errors:
            row.update(ratios(row, table[base], taken, np.asarray(samples[base])))
    if batch == min(config.batches) and shape.history <= config.train_longest:
        train(config, shape, table)
    return list(table.values())


def ratios(
    row: dict[str, Any], full: dict[str, Any], taken: np.ndarray, base: np.ndarray
) -> dict[str, Any]:
    """Of a row to full history: FLOPs both ways, paired time with quartiles."""
    low, middle, high = np.percentile(taken / base, (25, 50, 75))
    return {
        "flops_ratio_analytic": row["flops_analytic"] / full["flops_analytic"],
        "flops_ratio_xla": row["flops_xla"] / full["flops_xla"] if full["flops_xla"] else None,
        "time_ratio": float(middle),
        "time_ratio_quartiles": [float(low), float(high)],
    }


def train(config: GridConfig, shape: Shape, table: dict[tuple[str, int], dict[str, Any]]) -> None:
    """Adds training steps; the stored form changes none, so int8 has its model's."""
    steps: dict[tuple[str, int], Callable[[], Any]] = {}
    for cell in table:
        if cell[0] == "compressed_int8" and ("compressed", cell[1]) in table:
            continue
        try:
            step, compiled = training(config, *_args(cell, shape))
            table[cell]["train_peak_bytes"] = check_fits(compiled)
            steps[cell] = step
        except Exception as error:
            fail(table[cell], error, "train_")
    samples, errors = in_turn(steps, 0.0, config.train_rounds)
    for cell in steps:
        if cell in errors:
            fail(table[cell], errors[cell], "train_")
            continue
        table[cell]["train_rounds_ms"] = [1e3 * t for t in samples[cell]]
        table[cell]["train_step_ms"] = float(np.median(samples[cell])) * 1e3
    for (method, tokens), row in table.items():
        twin = table.get(("compressed", tokens), {})
        if method == "compressed_int8" and "train_step_ms" in twin:
            row["train_step_ms"] = twin["train_step_ms"]
    whole = table[("full", 0)]["train_step_ms"]
    for row in table.values():
        if whole and row["train_step_ms"]:
            row["train_ratio"] = row["train_step_ms"] / whole


def _args(cell: tuple[str, int], shape: Shape) -> tuple[str, Shape, int]:
    return cell[0], shape, cell[1]


def blank(shape: Shape, cell: tuple[str, int], batch: int) -> dict[str, Any]:
    """A row before anything is measured."""
    empty = "flops_analytic flops_xla p50_ms p90_ms p99_ms users_per_s peak_bytes state_bytes"
    return {
        "method": cell[0],
        "history": shape.history,
        "segments": shape.segments,
        "tokens": cell[1],
        "batch": batch,
        **dict.fromkeys(empty.split()),
        "train_step_ms": None,
        "status": "ok",
        "error": "",
    }


def fail(row: dict[str, Any], error: Exception, prefix: str = "") -> None:
    """Notes an error; of a training step the request's figures stay."""
    text = f"{prefix.rstrip('_')} {type(error).__name__}: {error}".strip()
    row["status"], row["error"] = prefix + status_of(error), text[:500]
    print(f"  {row['method']}, {row['tokens']} tokens: {row['error'][:200]}", file=sys.stderr)


def write_json(path: pathlib.Path, value: Any) -> None:
    """Whole or not at all."""
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(value, indent=1) + "\n")
    os.replace(part, path)


@contextlib.contextmanager
def compiled_once() -> Iterator[None]:
    """Programs that methods share, and those asked for their plan first, are compiled once.

    A cache that the user chose stays.
    """
    settings: Any = jax.config
    if settings.jax_compilation_cache_dir is not None:
        yield
        return
    with tempfile.TemporaryDirectory() as folder:
        settings.update("jax_compilation_cache_dir", folder)
        try:
            yield
        finally:
            settings.update("jax_compilation_cache_dir", None)


def run(config: GridConfig, folder: pathlib.Path) -> list[dict[str, Any]]:
    """Measures what DIR/rows.json does not hold; returns the rows of this configuration.

    What is timed together is stored together: a shape and batch size is measured anew as a whole.
    """
    with compiled_once():
        return _run(config, folder)


def _run(config: GridConfig, folder: pathlib.Path) -> list[dict[str, Any]]:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "rows.json"
    stored = json.loads(path.read_text()) if path.exists() else []
    settings = dataclasses.asdict(config)
    for name in ("shapes", "batches"):
        del settings[name]
    settings["trained_at"] = min(config.batches)
    found: list[dict[str, Any]] = []
    work = [
        (Shape(*shape), batch)
        for shape in config.shapes
        for batch in config.batches
        if batch == min(config.batches) or batch * shape[0] <= config.most_events
    ]
    kind = jax.devices()[0].device_kind
    for index, (shape, batch) in enumerate(work):
        key = key_of(settings, shape, batch, jax.__version__, kind)
        mine = [row for row in stored if row["key"] == key]
        name = f"[{index + 1}/{len(work)}] history {shape.history}, {shape.segments} segments"
        print(f"{name}, batch {batch}{': stored' if mine else ''}", file=sys.stderr, flush=True)
        if not mine:
            started = time.perf_counter()
            mine = [{**row, "key": key} for row in measure(config, shape, batch)]
            jax.clear_caches()  # programs of this shape are not needed again
            stored = stored + mine
            write_json(path, stored)
            print(f"  {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
        found += mine
    return found
