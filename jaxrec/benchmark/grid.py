"""Cells of the benchmark: timed in turn, stored when done, skipped when already stored."""

import contextlib
import dataclasses
import json
import pathlib
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

from jaxrec.benchmark import timing
from jaxrec.benchmark.grid_config import WITH_TOKENS, GridConfig, key_of
from jaxrec.benchmark.grid_methods import Request, Shape, request, training
from jaxrec.errors import DataError
from jaxrec.runtime import workdir
from jaxrec.types import Json
from jaxrec.untrusted import json_objects

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
Name = TypeVar("Name")


class Cell(NamedTuple):
    """method: one of `grid_config.METHODS`; tokens: per segment, 0 where the method has none."""

    method: str
    tokens: int


FULL = Cell("full", 0)  # what ratios are to


class PlanTooLarge(MemoryError):
    """XLA's plan does not fit: the call would end the process instead of raising."""


def available_bytes() -> int | None:
    """Free memory of the first device; None where it is unknown."""
    stats = jax.devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return int(stats["bytes_limit"] - stats.get("bytes_in_use", 0))
    info = pathlib.Path("/proc/meminfo")
    if jax.devices()[0].platform != "cpu" or not info.exists():
        return None
    lines = dict(line.split(":", 1) for line in info.read_text().splitlines() if ":" in line)
    return int(lines["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in lines else None


def check_fits(compiled: jax.stages.Compiled) -> int:
    """Planned peak bytes. Raises PlanTooLarge when the device has less memory left."""
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
    calls: Mapping[Name, Callable[[], object]], seconds: float, rounds: int
) -> tuple[dict[Name, list[float]], dict[Name, Exception]]:
    """Seconds of every call per round, and the errors of calls that failed.

    Rounds go on until `seconds` are used up, but 3 are run at least. Two rounds before them
    are not counted. A call that raises drops out with its error.
    """
    samples: dict[Name, list[float]] = {name: [] for name in calls}
    errors: dict[Name, Exception] = {}
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


def cells(config: GridConfig) -> list[Cell]:
    """The cells of every shape and batch size."""
    return [
        Cell(method, tokens)
        for method in config.methods
        for tokens in (config.tokens if method in WITH_TOKENS else (0,))
    ]


def measure(config: GridConfig, shape: Shape, batch: int) -> list[Json]:
    """Rows of every method for one shape and batch size, timed in turn."""
    table: dict[Cell, Json] = {}
    requests: dict[Cell, Request] = {}
    for cell in cells(config):
        row = table[cell] = blank(shape, cell, batch)
        try:
            compiled = request(config, cell.method, shape, cell.tokens, batch)
            row |= planned(compiled)
            check_fits(compiled.compiled)
            requests[cell] = compiled
        except Exception as error:
            fail(row, error)
    calls = {cell: compiled.call for cell, compiled in requests.items()}
    samples, errors = in_turn(calls, config.seconds, config.rounds)
    for cell, problem in errors.items():
        fail(table[cell], problem)
    for cell in calls:
        if cell in errors:
            continue
        row, seconds = table[cell], np.asarray(samples[cell])
        row |= latency(seconds, batch)
        if FULL in calls and FULL not in errors:
            row |= ratios(row, table[FULL], seconds, np.asarray(samples[FULL]))
    if batch == min(config.batches) and shape.history <= config.train_longest:
        train(config, shape, table)
    return list(table.values())


def planned(compiled: Request) -> Json:
    """FLOPs and bytes of a request, known before it runs."""
    return {
        "flops_analytic": compiled.flops,
        "state_bytes": compiled.state_bytes,
        "flops_xla": float((compiled.compiled.cost_analysis() or {}).get("flops", 0.0)),
        "peak_bytes": timing.peak_bytes(compiled.compiled),
    }


def latency(seconds: np.ndarray, batch: int) -> Json:
    """Percentiles and throughput of a request timed [rounds] times."""
    return {
        **{f"p{q}_ms": float(np.percentile(seconds, q)) * 1e3 for q in (50, 90, 99)},
        "users_per_s": batch / float(np.median(seconds)),
        "rounds_ms": [round(1e3 * float(value), 5) for value in seconds],
    }


def ratios(row: Json, full: Json, seconds: np.ndarray, full_seconds: np.ndarray) -> Json:
    """A row relative to full history: FLOPs by both counts, paired time with quartiles."""
    low, middle, high = np.percentile(seconds / full_seconds, (25, 50, 75))
    return {
        "flops_ratio_analytic": row["flops_analytic"] / full["flops_analytic"],
        "flops_ratio_xla": row["flops_xla"] / full["flops_xla"] if full["flops_xla"] else None,
        "time_ratio": float(middle),
        "time_ratio_quartiles": [float(low), float(high)],
    }


def train(config: GridConfig, shape: Shape, table: dict[Cell, Json]) -> None:
    """Adds training steps to the rows.

    The encoding of stored states does not change training: int8 takes the step of its model.
    """
    steps: dict[Cell, Callable[[], object]] = {}
    for cell in table:
        if cell.method == "compressed_int8" and Cell("compressed", cell.tokens) in table:
            continue
        try:
            step, compiled = training(config, cell.method, shape, cell.tokens)
            table[cell]["train_peak_bytes"] = check_fits(compiled)
            steps[cell] = step
        except Exception as error:
            fail(table[cell], error, "train_")
    samples, errors = in_turn(steps, 0.0, config.train_rounds)
    for cell in steps:
        if cell in errors:
            fail(table[cell], errors[cell], "train_")
            continue
        table[cell]["train_rounds_ms"] = [1e3 * seconds for seconds in samples[cell]]
        table[cell]["train_step_ms"] = float(np.median(samples[cell])) * 1e3
    for cell, row in table.items():
        twin = table.get(Cell("compressed", cell.tokens), {})
        if cell.method == "compressed_int8" and "train_step_ms" in twin:
            row["train_step_ms"] = twin["train_step_ms"]
    full_step = table[FULL]["train_step_ms"]
    for row in table.values():
        if full_step and row["train_step_ms"]:
            row["train_ratio"] = row["train_step_ms"] / full_step


def blank(shape: Shape, cell: Cell, batch: int) -> Json:
    """A row before anything is measured."""
    empty = "flops_analytic flops_xla p50_ms p90_ms p99_ms users_per_s peak_bytes state_bytes"
    return {
        "method": cell.method,
        "history": shape.history,
        "segments": shape.segments,
        "tokens": cell.tokens,
        "batch": batch,
        **dict.fromkeys(empty.split()),
        "train_step_ms": None,
        "status": "ok",
        "error": "",
    }


def fail(row: Json, error: Exception, prefix: str = "") -> None:
    """Notes an error; when a training step fails, the request's figures stay."""
    text = f"{prefix.rstrip('_')} {type(error).__name__}: {error}".strip()
    row["status"], row["error"] = prefix + status_of(error), text[:500]
    print(f"  {row['method']}, {row['tokens']} tokens: {row['error'][:200]}", file=sys.stderr)


def write_json(path: pathlib.Path, value: Json | list[Json]) -> None:
    """Writes a JSON file, whole or not at all."""
    workdir.write_text(path, json.dumps(value, indent=1) + "\n")


@contextlib.contextmanager
def compiled_once() -> Iterator[None]:
    """Compiles programs that several methods share only once, through a temporary cache.

    A compilation cache that the user has chosen is used instead.
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


def run(config: GridConfig, folder: pathlib.Path) -> list[Json]:
    """Measures what `folder`/rows.json does not hold; returns the rows of this configuration.

    Cells that are timed together are stored together, so a shape and batch size is measured
    again as a whole or not at all.
    """
    with compiled_once():
        return _run(config, folder)


def _stored(path: pathlib.Path) -> list[Json]:
    """Rows that an earlier call wrote, each with its key."""

    def refuse(text: str) -> DataError:
        return DataError(f"{text}; remove it: its cells are measured again")

    content = json_objects.read_bytes(path, refuse, max_bytes=json_objects.MAX_BYTES)
    rows = json_objects.parse_value(content, str(path), refuse)
    if not isinstance(rows, list) or not all(isinstance(r, dict) and "key" in r for r in rows):
        raise refuse(f"{path}: damaged: not rows of a benchmark")
    return rows


def _run(config: GridConfig, folder: pathlib.Path) -> list[Json]:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "rows.json"
    stored = _stored(path) if path.exists() else []
    settings = dataclasses.asdict(config)
    for name in ("shapes", "batches"):
        del settings[name]
    settings["trained_at"] = min(config.batches)
    rows: list[Json] = []
    blocks = [
        (Shape(*shape), batch)
        for shape in config.shapes
        for batch in config.batches
        if batch == min(config.batches) or batch * shape[0] <= config.most_events
    ]
    kind = jax.devices()[0].device_kind
    for index, (shape, batch) in enumerate(blocks):
        key = key_of(settings, shape, batch, jax.__version__, kind)
        measured = [row for row in stored if row["key"] == key]
        name = f"[{index + 1}/{len(blocks)}] history {shape.history}, {shape.segments} segments"
        note = ": stored" if measured else ""
        print(f"{name}, batch {batch}{note}", file=sys.stderr, flush=True)
        if not measured:
            started = time.perf_counter()
            measured = [{**row, "key": key} for row in measure(config, shape, batch)]
            jax.clear_caches()  # programs of this shape are not needed again
            stored = stored + measured
            write_json(path, stored)
            print(f"  {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
        rows += measured
    return rows
