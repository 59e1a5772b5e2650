"""Evaluation results as Markdown: the tables of one, a page of all of them."""

import pathlib
import textwrap
from collections.abc import Sequence
from typing import NamedTuple

from jaxrec.errors import DataError
from jaxrec.types import Json
from jaxrec.untrusted import json_objects

COMPARED = ("recall", "ndcg")  # metrics that rows are compared by, at HEADLINE
HEADLINE = 10  # list length of comparisons and of the printed table


class Grouping(NamedTuple):
    """A grouping of users or targets whose groups have metrics of their own.

    key: of the groups in a row's JSON. counted: what a group consists of. title: of the table.
    """

    key: str
    counted: str
    title: str


GROUPINGS = (
    Grouping("buckets", "users", "by events before the first target"),
    Grouping("kinds", "targets", "by when the user last had the target (users equally)"),
)
PAGE = """# Quality

How good the recommendations are, over all users and by group. The page holds every evaluation
under `results/`, one section a file, each with the command that made it.

How to read it:

"""
# what a row is, in the order of the page; only rows that the page has are explained
ROWS = {
    "compressed": "the stored state plus the recent window.",
    "masked": "the model of `compressed` in one masked forward pass.",
    "without-tokens": "the model of `compressed` again, shown only its recent window. It was not "
    "trained for that, so it says little about what the tokens add; `recent` does.",
    "recent-only": "the name of two rows in older results. Beside `compressed` it is the same "
    "model shown only its recent window, for which it was not trained (`without-tokens` today). In "
    "a section without `compressed` it is a model trained on the recent window (`recent` today).",
    "recent": "a model trained on the recent window alone.",
    "full": "a full-history model, trained separately.",
}
CLOSED = (
    "`gap closed` is (compressed - recent) / (full - recent): the share of what full history adds "
    "that the tokens keep. It means something where the interval of the gap lies above 0."
)
COUNTED = (
    "The recipes `completejourney_hstu` and `synthetic` also count a user's own items "
    "([method.md](method.md#history-items)). Like the tokens, these counts reach behind the recent "
    "window. So no ratio of their rows says what the tokens alone carry."
)
MADE = """
This page is made by `jaxrec report --page=results > docs/quality.md`.
"""


def reading(results: Sequence[Json]) -> str:
    """How to read a page of these evaluations: the rows and measures that it has."""
    present = {row["name"] for result in results for row in result["rows"]}
    points = [f"`{name}`: {text}" for name, text in ROWS.items() if name in present]
    points.append("The other rows are rules without parameters.")
    points.append("Intervals are 95 %, over users. A ratio pairs the users of its two rows.")
    if any(result.get("gap_closed") for result in results):
        points.append(CLOSED)
    points.append(COUNTED)
    return "".join(
        textwrap.fill(point, 100, initial_indent="- ", subsequent_indent="  ") + "\n"
        for point in points
    )


def markdown(result: Json, groups: bool = False) -> str:
    """The rows of an evaluation, its comparisons and its protocol as Markdown tables.

    groups: with tables by history length and by when the user last had the target.
    """
    rows = result["rows"]
    k = list_length(rows)
    lines = [*_rows_markdown(result, k), "", *_ratios_markdown(result, k)]
    if result.get("gap_closed"):  # older results do not have it
        lines += ["", *_closed_markdown(result["gap_closed"])]
    if result["paths"] is not None:
        lines += ["", f"State path against one masked forward: {paths_text(result['paths'])}."]
    for grouping in GROUPINGS if groups else ():
        if rows[0][grouping.key]:
            lines += ["", f"Recall@{k} {grouping.title}:", ""]
            lines += _groups_markdown(rows, grouping, f"recall@{k}")
    lines += ["", "| protocol | |", "|---|---|"]
    lines += [f"| {key} | {value} |" for key, value in result["protocol"].items()]
    return "\n".join(lines)


def _rows_markdown(result: Json, k: int) -> list[str]:
    lines = [
        f"| row | Recall@{k} | NDCG@{k} | coverage | MFLOP per request | of full history | state |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        flops, state = row["request_flops"], row["state_bytes"]
        cells = [
            row["name"],
            *(interval(row["metrics"][f"{metric}@{k}"], 4) for metric in COMPARED),
            or_blank(row["coverage"], ".1%"),
            "" if flops is None else f"{flops / 1e6:.1f}",
            "" if flops is None else f"{flops / result['full_history']['flops']:.1%}",
            "" if not state else f"{state / 1024:.1f} KB",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _ratios_markdown(result: Json, k: int) -> list[str]:
    lines = [f"| ratio | Recall@{k} | NDCG@{k} |", "|---|---|---|"]
    for pair, ratios in result["comparisons"].items():
        cells = [interval(ratio, 3) for ratio in ratios.values()]
        lines.append(f"| {' | '.join([pair, *cells])} |")
    return lines


TITLES = {"recall": "Recall", "ndcg": "NDCG", "mrr": "MRR"}


def _closed_markdown(gap_closed: Json) -> list[str]:
    """The share of the gap that compression closes, a column per metric."""
    heads = []
    for name in gap_closed:
        metric, at, k = name.partition("@")
        heads.append(f"{TITLES[metric]}{at}{k}")
    columns = gap_closed.values()
    return [
        f"| compressed between recent and full | {' | '.join(heads)} |",
        "|---" * (len(heads) + 1) + "|",
        f"| gap closed | {' | '.join(share_text(value['share']) for value in columns)} |",
        f"| gap, full - recent | {' | '.join(interval(value['gap'], 4) for value in columns)} |",
        f"| resamples without a gap | "
        f"{' | '.join(or_blank(value['without_gap'], '.1%') for value in columns)} |",
    ]


def share_text(value: Json) -> str:
    """A share with its interval, as percentages."""
    if value["mean"] is None:
        return "undefined: full is not above recent"
    text = f"{value['mean']:.1%}"
    return text if value["low"] is None else f"{text} [{value['low']:.1%}, {value['high']:.1%}]"


def _groups_markdown(rows: list[Json], grouping: Grouping, metric: str) -> list[str]:
    """One metric with its interval, a column per group."""
    heads = {
        label: f"{label} ({group[grouping.counted]:,} {grouping.counted})"
        for label, group in rows[0][grouping.key].items()
    }
    lines = [f"| row | {' | '.join(heads.values())} |", "|---" * (len(heads) + 1) + "|"]
    for row in rows:
        cells = [interval(row[grouping.key][label]["metrics"][metric], 3) for label in heads]
        lines.append(f"| {' | '.join([row['name'], *cells])} |")
    return lines


def page(folder: pathlib.Path) -> str:
    """The Markdown page of every evaluation in `folder`, one section a file."""
    results: dict[pathlib.Path, Json] = {}
    for path in sorted(folder.glob("*.json")):
        content = json_objects.read_bytes(path, DataError, max_bytes=json_objects.MAX_BYTES)
        value = json_objects.parse_value(content, str(path), DataError)
        if isinstance(value, dict) and {"protocol", "comparisons"} <= set(value):
            results[path] = value
    sections = []
    for path, result in results.items():
        command = f"`{result['command']}`\n\n" if "command" in result else ""
        with json_objects.taken_apart(path, DataError):
            sections.append(f"## {path.stem}\n\n{command}{markdown(result, groups=True)}\n")
    with json_objects.taken_apart(folder, DataError):
        first = PAGE + reading(list(results.values())) + MADE
    return "\n".join([first, *sections])


def list_length(rows: list[Json]) -> int:
    """The k of the printed metrics: HEADLINE, or the longest list that was evaluated."""
    lengths = sorted({int(name.partition("@")[2]) for name in rows[0]["metrics"]})
    return HEADLINE if HEADLINE in lengths else lengths[-1]


def paths_text(paths: Json) -> str:
    """How far state path and masked forward are apart."""
    text = f"scores differ by {paths['score_difference']:.1e} of their range"
    if paths["ranks_that_differ"] is not None:
        text += f", {paths['ranks_that_differ']} of {paths['targets']} ranks differ"
    return text


def interval(value: Json, digits: int) -> str:
    """A mean with its interval; `undefined` without one."""
    if value["mean"] is None:
        return "undefined"
    text = f"{value['mean']:.{digits}f}"
    if value["low"] is None:
        return text
    return f"{text} [{value['low']:.{digits}f}, {value['high']:.{digits}f}]"


def or_blank(value: float | None, format_spec: str) -> str:
    """A number, or nothing."""
    return "" if value is None else format(value, format_spec)
