"""All cells side by side: one JSON file, and a Markdown table of it.

    python -m benchmarks.peers.compare --runs=runs/peers --output=results/quality.json
    python -m benchmarks.peers.compare --show=results/quality.json

Quality is that of the test targets, made from their ranks by `jaxrec.evaluation.metrics`; intervals
and ratios resample seeds and users, paired. Time to a quality comes from the validation curves: the
mean over seeds of the best NDCG@10 so far, against what the best peer reached in the end.
"""

import argparse
import json
import pathlib
import sys
from collections.abc import Mapping, Sequence

import numpy as np

from benchmarks.peers import exchange, options, ranking, recipes
from benchmarks.peers.exchange import Events, Json
from benchmarks.peers.watch import METRIC
from jaxrec.errors import WorkdirError
from jaxrec.evaluation import baselines
from jaxrec.evaluation.ranks import Ranks, rule_ranks
from jaxrec.experiments import statistics
from jaxrec.experiments.result_table import plain
from jaxrec.runtime import environment, workdir

METRICS = (("recall", 10), ("ndcg", 10))
LOOK_BACK = 100  # events of the rule that looks at recent ones: the recent window
SAMPLES = 1000  # resamples of seeds and users
FACTS = (
    *("length", "settings", "recipe", "changes", "budget_seconds", "threads", "clock"),
    *("versions", "git"),
)


def as_ranks(arrays: Mapping[str, np.ndarray], kind: str) -> Ranks:
    """Ranks of a cell, as the package's metrics take them."""
    return Ranks(arrays["user"], arrays["position"], arrays["item"], arrays[kind], None)


def counted(ranks: Ranks, kind: str, events: Events) -> Ranks:
    """The targets that count: all, or only new items where seen ones are no candidates.

    A repeated item would be easy to find among candidates without the other seen ones.
    """
    if kind == "rank":
        return ranks
    places = zip(ranks.user, ranks.position, ranks.item, strict=True)
    new = np.asarray([item not in events.history(user)[:at] for user, at, item in places], bool)
    user, position, item, rank = (column[new] for column in ranks[:4])
    return Ranks(user, position, item, rank, None)


def rules(events: Events) -> dict[str, dict[str, Ranks]]:
    """Ranks of the rules without parameters, by row name and kind."""
    targets = exchange.targets(events, "test")
    like = Ranks(*targets, np.zeros(len(targets.user), np.int64), None)
    counts = np.bincount(exchange.training(events)[1], minlength=events.num_items + 1)
    popularity = baselines.Popularity(counts)
    by_rule: dict[str, dict[str, Ranks]] = {}
    for name, rule in baselines.rules(LOOK_BACK).items():
        for kind, filtered in zip(ranking.KINDS, (False, True), strict=True):
            if filtered and name != "popularity":
                continue  # nothing personal is left when seen items are no candidates
            ranks = rule_ranks(rule, popularity, events.history, like, filter_seen=filtered)
            by_rule.setdefault(name, {})[kind] = ranks
    return by_rule


def reached(curves: Sequence[Sequence[Mapping[str, float]]], quality: float) -> float | None:
    """Training seconds until the mean over seeds of the best so far is `quality`, or None."""
    moments = sorted({point["seconds"] for curve in curves for point in curve})
    for moment in moments:
        best = [
            max((p[METRIC] for p in curve if p["seconds"] <= moment), default=0.0)
            for curve in curves
        ]
        if np.mean(best) >= quality - 1e-12:
            return moment
    return None


def final(curves: Sequence[Sequence[Mapping[str, float]]]) -> float:
    """The mean over seeds of the best validation."""
    return float(np.mean([max(point[METRIC] for point in curve) for curve in curves]))


def _mean(cells: Sequence[Json], key: str) -> float | None:
    values = [cell[key] for cell in cells if cell.get(key) is not None]
    return float(np.mean(values)) if values else None


def row(name: str, kind: str, cells: Sequence[Json]) -> Json:
    """A row without its quality. kind: ours, peer or rule."""
    if not cells:
        return {"name": name, "kind": kind}
    flops, full = _mean(cells, "request_flops"), _mean(cells, "full_history_flops")
    return {
        "name": name,
        "kind": kind,
        "seeds": [cell["seed"] for cell in cells],
        "train_seconds": _mean(cells, "train_seconds"),
        "best_seconds": float(np.mean([cell["best"]["seconds"] for cell in cells])),
        "stopped": sorted({cell["stopped"] for cell in cells}),
        "validation": final([cell["curve"] for cell in cells]),
        "request_flops": flops,
        "request_share": None if flops is None or full is None else flops / full,
        "state_bytes": _mean(cells, "state_bytes"),
        **{key: cells[0][key] for key in FACTS if key in cells[0]},
        "curves": [cell["curve"] for cell in cells],
    }


def interval(value: statistics.Interval) -> dict[str, float]:
    """An interval as JSON."""
    return value._asdict()


def compared(
    rows: list[Json], tables: Mapping[str, Mapping[str, Mapping[str, np.ndarray]]]
) -> Json:
    """Ratios and differences, our rows over all others, by kind of ranks.

    tables: row -> kind -> metric -> [seeds, users]. Rules have one seed, as often as needed.
    """
    ours = [r["name"] for r in rows if r["kind"] == "ours"]
    comparisons: Json = {}
    for kind in ranking.KINDS:
        pairs = {}
        for a in ours:
            for b in (r["name"] for r in rows):
                if a == b or kind not in tables[b]:
                    continue
                pairs[f"{a} / {b}"] = {
                    metric: _against(tables[a][kind][metric], tables[b][kind][metric])
                    for metric in tables[a][kind]
                }
        comparisons[kind] = pairs
    return comparisons


def _against(a: np.ndarray, b: np.ndarray) -> Json:
    if len(b) == 1:
        b = np.repeat(b, len(a), axis=0)
    return {
        "ratio": interval(statistics.ratio(a, b, SAMPLES)),
        "difference": interval(statistics.interval(a - b, SAMPLES)),
    }


def finished(runs: pathlib.Path, data: str, names: Sequence[str]) -> list[int]:
    """Seeds with a finished cell in every row. Raises WorkdirError where there is none."""
    by_row = [
        {int(cell.parent.name.removeprefix("seed")) for cell in row.glob(f"seed*/{exchange.CELL}")}
        for row in (runs / data / name for name in names)
    ]
    seeds = sorted(set.intersection(*by_row)) if by_row else []
    if not seeds:
        raise WorkdirError(f"{runs / data}: no seed of which every row is finished")
    return seeds


def compare(runs: pathlib.Path, data: str, seeds: Sequence[int] | None = None) -> Json:
    """One data set. seeds: default those of which every row is finished.

    Raises WorkdirError for cells that are missing or of other events.
    """
    events = exchange.load_events(runs / data / exchange.EVENTS)
    names = [p.name for p in sorted((runs / data).iterdir()) if p.is_dir()]
    seeds = finished(runs, data, names) if seeds is None else seeds
    rows, tables = [], {}
    for name in names:
        cells, ranks = [], []
        for seed in seeds:
            folder = exchange.cell_folder(runs, data, name, seed)
            if not (folder / exchange.CELL).is_file():
                raise WorkdirError(f"{folder}: no finished cell; run it, or give --seeds")
            facts, arrays = exchange.load_cell(folder)
            if facts["digest"] != events.digest:
                raise WorkdirError(f"{folder}: made from other events; remove it")
            cells.append(facts)
            ranks.append(arrays)
        kind = "peer" if any(name.startswith(peer) for peer in recipes.PEERS) else "ours"
        rows.append(row(name, kind, cells))
        tables[name] = _tables(
            {k: [counted(as_ranks(a, k), k, events) for a in ranks] for k in ranking.KINDS}
        )
    for name, by_kind in rules(events).items():
        rows.append(row(name, "rule", []))
        tables[name] = _tables(
            {kind: [counted(one, kind, events)] for kind, one in by_kind.items()}
        )
    for one in rows:
        for kind, metrics in tables[one["name"]].items():
            for metric, table in metrics.items():
                one.setdefault(kind, {})[metric] = interval(statistics.interval(table, SAMPLES))
    peers = [one for one in rows if one["kind"] == "peer"]
    best = max(peers, key=lambda one: one["validation"], default=None)
    if best is not None:
        for one in rows:
            if one["kind"] != "rule":
                one["seconds_to_best_peer"] = reached(one["curves"], best["validation"])
    targets = exchange.targets(events, "test")
    return {
        "data": data,
        "protocol": protocol(events, targets, seeds),
        "best_peer": None if best is None else best["name"],
        "rows": rows,
        "comparisons": compared(rows, tables),
    }


def _tables(ranks: Mapping[str, Sequence[Ranks]]) -> dict[str, dict[str, np.ndarray]]:
    return {
        kind: {f"{metric}@{k}": statistics.values(some, metric, k) for metric, k in METRICS}
        for kind, some in ranks.items()
    }


def protocol(events: Events, targets: exchange.Targets, seeds: Sequence[int]) -> Json:
    users = len(np.unique(targets.user))
    return {
        "data_digest": events.digest,
        "split": f"last {len(targets.user) / users:g} events of a user, each predicted from all "
        "events before it (as many of the newest as a row's length)",
        "candidates": events.num_items,
        "ranking": "full catalog, ties count against the model",
        "seen items": "not filtered (rank), filtered (rank_filtered: new items are targets alone)",
        "users": users,
        "targets": len(targets.user),
        "weighting": "mean over a user's targets, users equally",
        "validation": f"{len(events.validated)} users, NDCG@10, seen items not filtered; the best "
        "weights are tested",
        "seeds": list(seeds),
        "interval": f"95 %, bootstrap over seeds and users, {SAMPLES} samples",
        "training seconds": "without preparation and validation; ours with compilation",
    }


def markdown(result: Json) -> str:
    """A page with every data set's table."""
    head = f"# Peers, side by side: results\n\nHow: [README.md](README.md). `{result['command']}`"
    return "\n\n".join([head, *(_markdown(one) for one in result["data"])])


def _markdown(one: Json) -> str:
    heads = ["row", "Recall@10", "NDCG@10", "Recall@10, new items", "NDCG@10, new items"]
    heads += ["training s", "s to best peer's", "MFLOP per request", "of full history"]
    lines = [f"## {one['data']}", "", f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for r in one["rows"]:
        cells = [r["name"]]
        for kind in ranking.KINDS:
            cells += [_text(r.get(kind, {}).get(f"{metric}@{k}")) for metric, k in METRICS]
        late = r.get("seconds_to_best_peer")
        never = "" if one["best_peer"] is None or r["kind"] == "rule" else "not reached"
        cells += [
            _number(r.get("train_seconds"), ".0f"),
            never if late is None else f"{late:.0f}",
            "" if r.get("request_flops") is None else f"{r['request_flops'] / 1e6:.1f}",
            _number(r.get("request_share"), ".1%"),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines.append("")
    for kind, pairs in one["comparisons"].items():
        for pair, metrics in pairs.items():
            parts = [f"{m} {_text(v['ratio'], 3)}" for m, v in metrics.items()]
            what = "" if kind == "rank" else ", new items"
            lines.append(f"- {pair}{what}: {', '.join(parts)}")
    facts = "; ".join(f"{key}: {value}" for key, value in one["protocol"].items())
    return "\n".join([*lines, "", f"Protocol: {facts}."])


def _text(value: Mapping[str, float | None] | None, digits: int = 4) -> str:
    if value is None:
        return ""
    if None in value.values():
        return "undefined"  # a ratio to nothing: a rule that never found a target
    return f"{value['mean']:.{digits}f} [{value['low']:.{digits}f}, {value['high']:.{digits}f}]"


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers.compare", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument("--runs", type=pathlib.Path, default=pathlib.Path("runs/peers"))
    parser.add_argument("--data", nargs="+", choices=recipes.DATA, default=list(recipes.DATA))
    parser.add_argument(
        "--seeds", default="", help="such as 0,1,2; default: those of which every row is finished"
    )
    parser.add_argument("--output", type=pathlib.Path, help="JSON file of the result")
    parser.add_argument("--show", type=pathlib.Path, help="print such a file, compare nothing")
    args = parser.parse_args()
    if args.show:
        print(markdown(json.loads(args.show.read_text())))
        return
    seeds = [int(seed) for seed in args.seeds.split(",")] if args.seeds else None
    try:
        data_sets = [compare(args.runs, data, seeds) for data in args.data]
    except WorkdirError as error:
        parser.error(str(error))
    described = environment.describe()
    result = plain(
        {
            "command": options.command_line("compare", sys.argv[1:]),
            "git": described["git"],
            "time": described["time"],
            "platform": described["platform"],
            "data": data_sets,
        }
    )
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        workdir.write_text(args.output, json.dumps(result, indent=1) + "\n")
    print(markdown(result))


if __name__ == "__main__":
    main()
