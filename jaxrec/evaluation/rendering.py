"""The JSON value of an evaluation as text: a table for people, Markdown, a page of all of them."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

COMPARED = ("recall", "ndcg")  # metrics whose ratio between rows is given, at HEADLINE
HEADLINE = 10  # list length of comparisons and of the printed table
# parts of the targets that have figures of their own: what of them is counted, their title
PARTS = {
    "buckets": ("users", "by events before the first target"),
    "kinds": ("targets", "by when the user last had the target (users equally)"),
}
PAGE = """# Quality

What `eval.py` measured; `results/` holds the JSON. Intervals are 95 % over users.
This page is made by
`python -m jaxrec.evaluation.report --page results > docs/quality.md`.
"""


def markdown(result: Mapping[str, Any], parts: bool = False) -> str:
    """The rows of an evaluation as a Markdown table, comparisons and protocol below it.

    parts: with tables by history length and by when the user last had the target, too.
    """
    rows, full = result["rows"], result["full_history"]
    k = _headline(rows)
    lines = [
        f"| row | Recall@{k} | NDCG@{k} | coverage | MFLOP per request | of full history | state |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        flops, state = row["request_flops"], row["state_bytes"]
        cells = [
            row["name"],
            *(_interval(row["metrics"][f"{metric}@{k}"], 4) for metric in COMPARED),
            _or_blank(row["coverage"], ".1%"),
            "" if flops is None else f"{flops / 1e6:.1f}",
            "" if flops is None else f"{flops / full['flops']:.1%}",
            "" if not state else f"{state / 1024:.1f} KB",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines.append("")
    for name, value in result["comparisons"].items():
        ratios = [f"{metric} {_interval(found, 3)}" for metric, found in value.items()]
        lines.append(f"- {name}: {', '.join(ratios)}")
    if result["paths"] is not None:
        lines.append(f"- state path against one masked forward: {_paths(result['paths'])}")
    for part, (counted, title) in PARTS.items():
        if parts and rows[0][part]:
            lines += ["", f"Recall@{k} {title}:", ""]
            lines += _part_markdown(rows, part, counted, f"recall@{k}")
    facts = "; ".join(f"{key}: {value}" for key, value in result["protocol"].items())
    return "\n".join([*lines, "", f"Protocol: {facts}."])


def _part_markdown(rows: list[Any], part: str, counted: str, metric: str) -> list[str]:
    """One metric by `part` with its interval, a column per label."""
    labels = {label: f"{of[counted]:,} {counted}" for label, of in rows[0][part].items()}
    head = " | ".join(f"{label} ({count})" for label, count in labels.items())
    lines = [f"| row | {head} |", "|---" * (len(labels) + 1) + "|"]
    for row in rows:
        cells = [_interval(row[part][label]["metrics"][metric], 3) for label in labels]
        lines.append(f"| {' | '.join([row['name'], *cells])} |")
    return lines


def page(folder: pathlib.Path) -> str:
    """The Markdown page of every evaluation in `folder`, one section a file."""
    parts = [PAGE]
    for path in sorted(folder.glob("*.json")):
        result = json.loads(path.read_text())
        if "protocol" in result and "comparisons" in result:
            made = f"`{result['command']}`\n\n" if "command" in result else ""
            parts.append(f"## {path.stem}\n\n{made}{markdown(result, parts=True)}\n")
    return "\n".join(parts)


def _headline(rows: list[Any]) -> int:
    known = sorted({int(name.partition("@")[2]) for name in rows[0]["metrics"]})
    return HEADLINE if HEADLINE in known else known[-1]


def format_table(result: Mapping[str, Any]) -> str:
    """The JSON value of an evaluation as a table for people."""
    rows, full = result["rows"], result["full_history"]
    k = _headline(rows)
    shown = [f"recall@{k}", f"ndcg@{k}"]
    wide = max(len(row["name"]) for row in rows) + 2
    lines = [
        f"{'row':<{wide}}"
        + "".join(f"{name:>25}" for name in shown)
        + f"{'coverage':>10}{'pairs':>10}{'MFLOP':>9}{'of full':>9}{'state KB':>10}"
    ]
    for row in rows:
        cells = [f"{row['name']:<{wide}}"]
        cells += [f"{_interval(row['metrics'][name], 4):>25}" for name in shown]
        cells.append(f"{_or_blank(row['coverage'], '.1%'):>10}")
        cells.append(f"{_or_blank(row['request_pairs'], ',d'):>10}")
        flops = row["request_flops"]
        cells.append(f"{'' if flops is None else format(flops / 1e6, '.2f'):>9}")
        share = None if flops is None else flops / full["flops"]
        cells.append(f"{_or_blank(share, '.1%'):>9}")
        state = row["state_bytes"]
        cells.append(f"{'' if state is None else format(state / 1024, '.1f'):>10}")
        lines.append("".join(cells))
    lines.append(
        "pairs, MFLOP: attention pairs of one layer and encoder work of one request; of full: "
        "work of a full-history request"
    )
    for part, (counted, title) in PARTS.items():
        if rows[0][part]:
            lines += ["", f"{shown[0]} {title}"]
            lines += _part_table(rows, part, counted, shown[0], wide)
    lines.append("")
    for name, value in result["comparisons"].items():
        parts = [f"{metric} {_interval(found, 3)}" for metric, found in value.items()]
        lines.append(f"{name}: {', '.join(parts)}")
    if result["paths"] is not None:
        lines.append("state path against one masked forward: " + _paths(result["paths"]))
    lines += [f"{key}: {value}" for key, value in result["protocol"].items()]
    return "\n".join(lines)


def _part_table(rows: list[Any], part: str, counted: str, metric: str, wide: int) -> list[str]:
    """One metric by `part` (buckets, kinds), a column per label, how many of `counted` on top."""
    labels = list(rows[0][part])
    counts = [f"{rows[0][part][label][counted]:,}" for label in labels]
    lines = [f"{'':<{wide}}" + "".join(f"{label:>16}" for label in labels)]
    lines.append(f"{counted:<{wide}}" + "".join(f"{count:>16}" for count in counts))
    for row in rows:
        means = [row[part][label]["metrics"][metric]["mean"] for label in labels]
        lines.append(f"{row['name']:<{wide}}" + "".join(f"{mean:>16.4f}" for mean in means))
    return lines


def _paths(paths: Mapping[str, Any]) -> str:
    text = f"scores differ by {paths['score_difference']:.1e} of their range"
    if paths["ranks_that_differ"] is not None:
        text += f", {paths['ranks_that_differ']} of {paths['targets']} ranks differ"
    return text


def _interval(value: Mapping[str, float | None], digits: int) -> str:
    if value["mean"] is None:
        return "undefined"
    text = f"{value['mean']:.{digits}f}"
    if value["low"] is None:
        return text
    return f"{text} [{value['low']:.{digits}f}, {value['high']:.{digits}f}]"


def _or_blank(value: Any, form: str) -> str:
    return "" if value is None else format(value, form)
