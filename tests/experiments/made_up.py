"""Tables and a benchmark's report with made-up numbers, as the programs write them."""

import dataclasses
import json

import numpy as np

from jaxrec.benchmark import grid, grid_config, timing
from jaxrec.benchmark.grid_methods import Shape
from jaxrec.evaluation.intervals import Interval
from jaxrec.experiments import result_table, verdict
from jaxrec.experiments.result_table import Cell, Experiment, Line
from tests.experiments import tiny

PROTOCOL = {"dataset": "synthetic", "seeds": [0, 1], "users": "10 of those with 20 events"}
SHAPES = ((20, 5), (40, 10))


def length_rows():
    rows = [{"name": "recent window", "series": "recent window alone", "history": 6}]
    for events, ratio in ((12, 1.01), (24, 0.9625)):
        share = Interval(ratio, ratio - 0.03, ratio + 0.02)
        shares = {
            **result_table.spread("recall_of_full", share),
            **result_table.spread("ndcg_of_full", share),
        }
        shares |= {"flops_of_full": 3 / events, "state_bytes": 8 * events}
        rows += [
            {"name": f"compressed {events}", "series": "compressed", "history": events, **shares},
            {"name": f"full {events}", "series": "full", "history": events},
        ]
    for number, row in enumerate(rows):
        recall = 0.1 + number / 100
        row |= result_table.spread("recall@10", Interval(recall, recall - 0.01, recall + 0.01))
        row |= {"mflop_request": 0.5 + number, "users": 10, "recall@10_seeds": [recall, recall]}
    return rows


def written(folder, name, rows, plots, **changes):
    """A table as `python -m jaxrec.experiments` writes it."""
    cells = [Cell(row["name"], dict) for row in rows]
    texts = (f"Table of {name}", f"What does {name} say?", "A method & <a way>.", "Read `it`.")
    experiment = Experiment(name, *texts, cells, plots)
    command = f"python -m jaxrec.experiments {name} --config=x.py --output=results/x"
    made = result_table.result(experiment, rows, tiny.config(), PROTOCOL, command) | changes
    folder.mkdir(parents=True, exist_ok=True)
    result_table.write(folder, made)
    return made


def gap_rows(recent=0.1, compressed=0.19, full=0.2, error=0.002, suffix=""):
    """Rows of `gap` with these values by every metric and intervals of twice `error`.

    Without a suffix also those of popularity, at 0.05, and of the model without its tokens.
    """
    levels = {"recent": recent, "compressed": compressed, "full": full}
    levels = {name + suffix: level for name, level in levels.items()}
    if not suffix:
        levels |= {"popularity": 0.05, "compressed without its tokens": recent - 0.02}
    rows = []
    for name, level in levels.items():
        row = {"name": name, "part": suffix or "tokens alone", "users": 10, "history": 24}
        for metric in verdict.METRICS:
            row |= result_table.spread(metric, Interval(level, level - error, level + error))
        rows.append(row)
    row = next(row for row in rows if row["name"].startswith("compressed"))
    row |= {"flops_of_full": 0.125, "amortised_of_full": 0.25, "state_bytes": 2048}
    row |= {"token_bytes": 1500, "remembered_bytes": 0, "pending_bytes": 400}
    gap, share = full - recent, (compressed - recent) / (full - recent)
    for metric in verdict.METRICS:
        spread = Interval(gap, gap - error, gap + error)
        row |= result_table.spread(f"{metric}_gap", spread)
        row |= result_table.spread(
            f"{metric}_closed", Interval(share, share - error / gap, share + error / gap)
        )
        row[f"{metric}_without_gap"] = 0.0
    return rows


def gap(folder, **values):
    plot = Line("Shown", "name", "ndcg@10", "", "NDCG@10", kind="bar")
    return written(folder, "gap", gap_rows(**values), [plot])


def length(folder):
    line = Line("Length", "history", "recall@10", "history, events", "Recall@10", log=True)
    return written(folder, "length", length_rows(), [line])


def placement(folder):
    """Bars; made on another machine."""
    rows = [
        {"name": n, "placement": n, "series": "compressed", "ndcg@10": v}
        for n, v in (("at the end", 0.1), ("per segment", 0.2))
    ]
    bar = Line("Placement", "placement", "ndcg@10", "tokens stand", "NDCG@10", kind="bar")
    machine = {"devices": ["gpu"], "cpu_count": 16, "platform": "Linux x86_64"}
    return written(folder, "placement", rows, [bar], machine=machine)


def experts(folder):
    """A heat map; rows in two parts."""
    rows = [
        {"name": f"{a} {b}", "part": "similarity", "x": a, "series": f"token {b}", "value": a * b}
        for a in range(3)
        for b in range(2)
    ]
    rows.append({"name": "mass", "part": "attention", "mass": 0.5})
    heat = Line("Similarity", "x", "value", "token", "cosine", kind="heat")
    return written(folder, "experts", rows, [heat])


def bench_rows(config):
    """Every request twice as long as its FLOPs say; the longest full history does not fit."""
    rows = []
    for shape in (Shape(*shape) for shape in config.shapes):
        for cell in grid.cells(config):
            row = grid.blank(shape, cell, 1)
            rows.append(row)
            if cell.method == "full" and shape.history == 40:
                grid.fail(row, MemoryError("the plan needs 9 bytes"))
                continue
            cost = {"full": 100.0, "recent": 10.0}.get(cell.method, 20.0 + cell.tokens)
            milliseconds = cost / 50 * np.array([1.0, 1.1, 0.9])
            row |= {"flops_analytic": cost, "flops_xla": cost, "peak_bytes": 10 * int(cost)}
            row |= {
                "state_bytes": int(cost),
                "rounds_ms": milliseconds.tolist(),
                "users_per_s": 5.0,
            }
            row |= {f"p{q}_ms": float(np.percentile(milliseconds, q)) for q in (50, 90, 99)}
            row |= {"train_rounds_ms": (8 * milliseconds).tolist(), "train_step_ms": 8 * cost / 50}
            if shape.history == 20:
                row |= {"train_ratio": cost / 100, "time_ratio": 2 * cost / 100}
                row |= {"time_ratio_quartiles": [1.9 * cost / 100, 2.2 * cost / 100]}
                row |= {"flops_ratio_analytic": cost / 100, "flops_ratio_xla": cost / 100}
    return rows


def bench(folder):
    """`report.json` as `python -m jaxrec.benchmark` writes it."""
    config = grid_config.validate(grid_config.GridConfig(shapes=SHAPES, tokens=(1, 4)))
    made = timing.report(
        "jaxrec.benchmark",
        bench_rows(config),
        kind="grid",
        timing=grid.TIMING,
        config=dataclasses.asdict(config),
    )
    made["command"] = "python -m jaxrec.benchmark --config=configs/bench_cpu.py --output=results/b"
    made["versions"] = {"jax": "0.0.1"}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").write_text(json.dumps(made))
    return made
