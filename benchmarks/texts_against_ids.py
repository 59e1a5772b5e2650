"""Runs of text items and of ids on the same targets, with a row for items unseen in training.

    python -m benchmarks.texts_against_ids --output=results/hllm.json \\
        hllm=runs/hllm_ml id=runs/llama_ml

Each run is a folder of train.py. All must have the same data and split. A target is cold when
its item has no event in the training part: an id then has an untrained vector, a text its own.
"""

import argparse
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxrec.benchmark import timing
from jaxrec.config import Config
from jaxrec.errors import ConfigError, WorkdirError
from jaxrec.evaluation import intervals, metrics, report
from jaxrec.evaluation.report import Ranks
from jaxrec.runtime import workdir
from jaxrec.session import Session

KS = (10, 50)
SAMPLES = 1000


def figures(rank: np.ndarray, user: np.ndarray, catalog: int) -> dict[str, Any]:
    """Recall, NDCG, reciprocal rank and share of the catalog above the target (rank 0 is best).

    Means over a user's targets, users equally, with 95 % intervals over users.
    """
    if not len(rank):
        return {"targets": 0}
    wanted = [(name, k) for name in ("recall", "ndcg") for k in KS]
    values = {f"{name}@{k}": metrics.gain(name, rank, k) for name, k in wanted}
    values["mrr"] = metrics.gain("mrr", rank)
    values["rank_share"] = rank / max(catalog - 1, 1)  # 0.5: as at random
    gains = np.stack(list(values.values()), axis=1)
    users, means = metrics.over_users(gains, np.ones(len(rank)), user)
    found = intervals.bootstrap(means, SAMPLES)
    rows = zip(values, found.mean, found.low, found.high, strict=True)
    return {"targets": len(rank), "users": len(users)} | {
        name: {"mean": float(mean), "low": float(low), "high": float(high)}
        for name, mean, low, high in rows
    }


def split(ranks: Ranks, counts: np.ndarray) -> dict[str, Any]:
    """Figures over all, warm and cold targets; counts: [V + 1] training events per item."""
    cold = counts[ranks.item] == 0
    catalog = len(counts) - 1
    return {
        name: figures(ranks.rank[chosen], ranks.user[chosen], catalog)
        for name, chosen in (("all", cold | True), ("warm", ~cold), ("cold", cold))
    }


def compared(found: Mapping[str, Ranks], config: Config) -> dict[str, Any]:
    """The first row over every other one by Recall@10 and NDCG@10, users paired."""
    first, *others = found
    pairs: dict[str, Any] = {}
    for name in others:
        pairs[f"{first} / {name}"] = ratios = {}
        for metric in report.COMPARED:
            ratio = report.ratio(found[first], found[name], metric, config)
            numbers = {key: float(value) for key, value in ratio._asdict().items()}
            ratios[f"{metric}@{report.HEADLINE}"] = numbers
    return pairs


def _protocol(config: Config, items: int, row: dict[str, Any]) -> dict[str, Any]:
    """What is the same for all runs of one data set and split, and the run's `sequence`."""
    found = report.protocol(config, items, users=row["all"]["users"], targets=row["all"]["targets"])
    return {name: value for name, value in found.items() if name not in ("coverage", "recent-only")}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.texts_against_ids", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument("runs", nargs="+", help="name=FOLDER of a run of train.py")
    parser.add_argument("--output", default="", help="JSON file of the result")
    args = parser.parse_args()
    rows, found, digests = [], dict[str, Ranks](), None
    for run in args.runs:
        name, _, folder = run.partition("=")
        if not folder:
            parser.error(f"{run!r}: name=FOLDER is needed")
        try:
            config = workdir.load_config(pathlib.Path(folder))
            config.eval.filter_seen, config.eval.bootstrap = False, SAMPLES  # what is done here
            session = Session(config, pathlib.Path(folder))
            if digests not in (None, session.digests):
                raise ConfigError(f"{folder}: has other data or another split than the runs before")
            digests = session.digests
            subject = session.trained_model()
        except (ConfigError, WorkdirError, OSError, ValueError) as error:
            parser.exit(2, f"error: {error}\n")
        parts = {"own": subject.batches}
        if config.layout.mode == "compressed" and subject.recent_batches is not None:
            parts["recent-only"] = subject.recent_batches
        for history, batches in parts.items():
            print(f"ranking {name}, {history} history", file=sys.stderr)
            ranks = rows.model_ranks(
                rows.predictor("masked", subject.model),
                subject.params,
                subject.model.item_table(subject.params),
                batches(),
                own=rows.own_items(subject.model),
                chunk=config.eval.chunk,
                lists=False,
            )
            row = split(ranks, session.prepared.counts)
            protocol = _protocol(config, session.prepared.num_items, row)
            shown = config.layout.mode if history == "own" else history
            found[f"{name} {shown}"] = ranks
            items = "texts" if config.model.texts.model else "ids"
            trained = config.model.texts.train if config.model.texts.model else ""
            about = {"run": name, "items": items, "item_tower": trained, "history": shown}
            rows.append({**about, "sequence": protocol.pop("sequence"), **row})
            line = ", ".join(
                f"{part} {row[part]['ndcg@10']['mean']:.4f} ({row[part]['targets']:,})"
                for part in ("all", "warm", "cold")
                if row[part]["targets"]
            )
            print(f"{name:<12} {shown:<12} ndcg@10 (targets): {line}", flush=True)
    comparisons = compared(found, config)
    for pair, ratios in comparisons.items():
        shown = ", ".join(f"{m} {r['mean']:.3f}" for m, r in ratios.items())
        print(f"{pair}: {shown}")
    facts = {"protocol": protocol, "digests": digests, "comparisons": comparisons}
    timing.save(timing.report("hllm", rows, **facts), args.output)


if __name__ == "__main__":
    main()
