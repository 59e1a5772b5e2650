"""An evaluation for a terminal: the answer in a few lines, then the table.

Rows that say nothing new are left out unless everything is asked for; results.json has all.
"""

from typing import NamedTuple

from jaxrec.evaluation.rendering import (
    COMPARED,
    GROUPINGS,
    Grouping,
    interval,
    list_length,
    or_blank,
    paths_text,
    share_text,
)
from jaxrec.types import Json

POPULARITY = "popularity"
SAME = "masked"  # the model of `compressed`, computed in another way
CONTROLS = (SAME, "without-tokens")  # rows of the compressed model that nobody serves


class Shown(NamedTuple):
    """What a table shows. left_out: row -> why it is not there."""

    rows: list[Json]
    comparisons: Json
    left_out: dict[str, str]


def format_table(result: Json, *, verbose: bool = False, source: str = "") -> str:
    """The JSON value of an evaluation: a summary, the table, the protocol.

    verbose: with the rows and ratios that say nothing. source: the file that holds everything.
    """
    shown = chosen(result, verbose)
    rows, k = shown.rows, list_length(result["rows"])
    names = [f"{metric}@{k}" for metric in COMPARED]
    name_width = max(len(row["name"]) for row in rows) + 2
    lines = [*summary(result, source), "", *_rows_text(result, rows, names, name_width)]
    for grouping in GROUPINGS:
        if rows[0][grouping.key]:
            lines += ["", f"{names[0]} {grouping.title}"]
            lines += _groups_text(rows, grouping, names[0], name_width)
    lines.append("")
    for pair, ratios in shown.comparisons.items():
        cells = [f"{metric} {interval(ratio, 3)}" for metric, ratio in ratios.items()]
        lines.append(f"{pair}: {', '.join(cells)}")
    for name, value in (result.get("gap_closed") or {}).items():
        if value["share"]["mean"] is None and not verbose:
            lines.append(f"gap closed, {name}: undefined, full is not above recent")
            continue
        lines.append(
            f"gap closed, {name}: {share_text(value['share'])} of {interval(value['gap'], 4)}, "
            f"{or_blank(value['without_gap'], '.1%')} of resamples without a gap"
        )
    if result["paths"] is not None:
        lines.append("state path against one masked forward: " + paths_text(result["paths"]))
    lines += [f"{key}: {value}" for key, value in result["protocol"].items()]
    if shown.left_out:
        why = ", ".join(f"{name} ({reason})" for name, reason in shown.left_out.items())
        lines.append(f"left out: {why}; --verbose shows all")
    return "\n".join(lines)


def chosen(result: Json, verbose: bool) -> Shown:
    """The rows and ratios of the table; without those that say nothing unless `verbose`."""
    rows, comparisons = result["rows"], result["comparisons"]
    if verbose:
        return Shown(rows, comparisons, {})
    names = [row["name"] for row in rows]
    left_out: dict[str, str] = {}
    for row in rows:
        if row["name"] == SAME and "compressed" in names:
            left_out[SAME] = "as compressed"
        elif all(value["mean"] == 0 for value in row["metrics"].values()):
            left_out[row["name"]] = "all zero"
    if len(left_out) == len(rows):  # then that is what there is to say
        left_out = {}
    kept = [row for row in rows if row["name"] not in left_out]
    ratios = {}
    for pair, values in comparisons.items():
        if all(ratio["mean"] is None for ratio in values.values()):
            left_out[pair] = "undefined"
        elif not set(pair.split(" / ")) & set(left_out):
            ratios[pair] = values
    return Shown(kept, ratios, left_out)


def summary(result: Json, source: str = "") -> list[str]:
    """Two to four lines: quality of the best model, the best rule, the cost, where the rest is."""
    metric = f"ndcg@{list_length(result['rows'])}"
    models = [row for row in result["rows"] if row["request_flops"] is not None]
    rules = [row for row in result["rows"] if row["request_flops"] is None]
    models = [row for row in models if row["name"] not in CONTROLS] or models
    ranked = sorted(models, key=lambda row: -row["metrics"][metric]["mean"])
    lines = []
    if ranked:
        best = ranked[0]
        quality = f"{best['name']}: {_quality(best, metric)}"
        lines.append(quality + _against_popularity(result, best, metric))
    if rules:
        lines += _against_rules(
            max(rules, key=lambda row: row["metrics"][metric]["mean"]), ranked, metric
        )
    cost = _cost(result, models)
    if cost:
        lines.append(cost)
    if source:
        lines.append(f"everything, with intervals of all metrics: {source}")
    return lines


def _quality(row: Json, metric: str) -> str:
    recall = metric.replace("ndcg", "recall")
    shown = {"NDCG": metric, "Recall": recall}
    return ", ".join(
        f"{title}@{name.partition('@')[2]} {interval(row['metrics'][name], 4)}"
        for title, name in shown.items()
    )


def _against_popularity(result: Json, best: Json, metric: str) -> str:
    ratio = result["comparisons"].get(f"{best['name']} / {POPULARITY}", {}).get(metric)
    if ratio is not None and ratio["mean"] is not None:
        return f"; {interval(ratio, 2)} times popularity by NDCG"
    other = next((row for row in result["rows"] if row["name"] == POPULARITY), None)
    if other is None:
        return ""
    return f"; popularity: {other['metrics'][metric]['mean']:.4f} by NDCG"


def _against_rules(rule: Json, models: list[Json], metric: str) -> list[str]:
    """A line where a rule without parameters is better than every model."""
    value = rule["metrics"][metric]["mean"]
    if not models:
        return [f"best rule: {rule['name']}, {_quality(rule, metric)}"]
    if value <= models[0]["metrics"][metric]["mean"]:
        return []
    return [
        f"a rule without training is better: {rule['name']}, {_quality(rule, metric)}. "
        "Train longer, or look at the data (jaxrec describe)"
    ]


def _cost(result: Json, models: list[Json]) -> str:
    """What a request costs the compressed model against full history, and its quality there."""
    row = next((row for row in models if row["name"] == "compressed"), None)
    full = (result.get("full_history") or {}).get("flops")
    if row is None or not full:
        return ""
    text = f"a request to compressed: {row['request_flops'] / full:.1%} of the work of full history"
    if row["state_bytes"]:
        text += f", from a state of {row['state_bytes'] / 1024:.1f} KB"
    ratio = result["comparisons"].get("compressed / full", {})
    for name, value in ratio.items():
        if name.startswith("ndcg") and value["mean"] is not None:
            text += f"; {interval(value, 3)} of its NDCG"
    return text


def _rows_text(result: Json, rows: list[Json], shown: list[str], name_width: int) -> list[str]:
    lines = [
        f"{'row':<{name_width}}"
        + "".join(f"{name:>25}" for name in shown)
        + f"{'coverage':>10}{'pairs':>10}{'MFLOP':>9}{'of full':>9}{'state KB':>10}"
    ]
    for row in rows:
        flops, state = row["request_flops"], row["state_bytes"]
        share = None if flops is None else flops / result["full_history"]["flops"]
        cells = [f"{row['name']:<{name_width}}"]
        cells += [f"{interval(row['metrics'][name], 4):>25}" for name in shown]
        cells.append(f"{or_blank(row['coverage'], '.1%'):>10}")
        cells.append(f"{or_blank(row['request_pairs'], ',d'):>10}")
        cells.append(f"{'' if flops is None else format(flops / 1e6, '.2f'):>9}")
        cells.append(f"{or_blank(share, '.1%'):>9}")
        cells.append(f"{'' if state is None else format(state / 1024, '.1f'):>10}")
        lines.append("".join(cells))
    lines.append(
        "pairs, MFLOP: attention pairs of one layer and encoder work of one request; of full: "
        "work of a full-history request"
    )
    return lines


def _groups_text(rows: list[Json], grouping: Grouping, metric: str, name_width: int) -> list[str]:
    """One metric, a column per group, with the size of the groups on top."""
    labels = list(rows[0][grouping.key])
    counts = [f"{rows[0][grouping.key][label][grouping.counted]:,}" for label in labels]
    lines = [
        " " * name_width + "".join(f"{label:>16}" for label in labels),
        f"{grouping.counted:<{name_width}}" + "".join(f"{count:>16}" for count in counts),
    ]
    for row in rows:
        means = [row[grouping.key][label]["metrics"][metric]["mean"] for label in labels]
        lines.append(f"{row['name']:<{name_width}}" + "".join(f"{mean:>16.4f}" for mean in means))
    return lines
