"""Runs with text items and with item ids on the same targets, cold items among them.

    python -m benchmarks.texts_against_ids --output=results/hllm.json \\
        hllm=runs/hllm_ml id=runs/llama_ml

Each run is a folder of train.py; all must have the same data and split. A target is cold when its
item has no event in the training part: its id then has an untrained vector, its text has one.
"""

import argparse
import pathlib
import sys
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from jaxrec.benchmark import timing
from jaxrec.config import Config
from jaxrec.errors import ConfigError, JaxrecError
from jaxrec.evaluation import evaluator, metrics, report
from jaxrec.evaluation.intervals import bootstrap
from jaxrec.evaluation.ranks import Ranks, model_ranks
from jaxrec.runtime import workdir
from jaxrec.session import Session
from jaxrec.types import Json

KS = (10, 50)
SAMPLES = 1000


def figures(rank: np.ndarray, user: np.ndarray, catalog: int) -> Json:
    """Recall, NDCG, reciprocal rank and share of the catalog above the target, by target.

    rank, user: int [P], rank 0 is the best. Means over a user's targets, users weigh equally,
    with 95 % intervals over users.
    """
    if not len(rank):
        return {"targets": 0}
    names = [(name, k) for name in ("recall", "ndcg") for k in KS]
    values = {f"{name}@{k}": metrics.gain(name, rank, k) for name, k in names}
    values["mrr"] = metrics.gain("mrr", rank)
    values["rank_share"] = rank / max(catalog - 1, 1)  # 0.5 at random
    gains = np.stack(list(values.values()), axis=1)
    users, means = metrics.over_users(gains, np.ones(len(rank)), user)
    intervals = bootstrap(means, SAMPLES)
    rows = zip(values, *map(np.atleast_1d, intervals), strict=True)
    return {"targets": len(rank), "users": len(users)} | {
        name: {"mean": float(mean), "low": float(low), "high": float(high)}
        for name, mean, low, high in rows
    }


def split(ranks: Ranks, counts: np.ndarray) -> Json:
    """Figures of all, warm and cold targets; counts: int [V + 1], training events per item."""
    cold = counts[ranks.item] == 0
    catalog = len(counts) - 1
    return {
        name: figures(ranks.rank[chosen], ranks.user[chosen], catalog)
        for name, chosen in (("all", cold | True), ("warm", ~cold), ("cold", cold))
    }


def compared(ranks: Mapping[str, Ranks], config: Config) -> Json:
    """Ratios of Recall@10 and NDCG@10 of the first row over every other one, users paired."""
    first, *others = ranks
    pairs: Json = {}
    for name in others:
        pairs[f"{first} / {name}"] = ratios = {}
        for metric in report.COMPARED:
            ratio = report.ratio(ranks[first], ranks[name], metric, config)
            numbers = {key: float(value) for key, value in ratio._asdict().items()}
            ratios[f"{metric}@{report.HEADLINE}"] = numbers
    return pairs


def _protocol(config: Config, items: int, row: Json) -> Json:
    """The protocol of a data set and split, with the run's own `sequence`."""
    counts = row["all"]
    facts = report.protocol(config, items, users=counts["users"], targets=counts["targets"])
    return {
        name: value for name, value in facts.items() if name not in ("coverage", "recent window")
    }


class Evaluated(NamedTuple):
    """A run evaluated with one length of history. about: run, items, item_tower, history."""

    about: dict[str, str]
    ranks: Ranks
    figures: Json
    protocol: Json

    @property
    def title(self) -> str:
        return f"{self.about['run']} {self.about['history']}"


def load(folder: str) -> Session:
    """The run in a folder, set to be evaluated as here: seen items are not filtered."""
    config = workdir.load_config(pathlib.Path(folder))
    config.eval.filter_seen, config.eval.bootstrap = False, SAMPLES
    return Session(config, pathlib.Path(folder))


def evaluated(name: str, session: Session) -> Iterator[Evaluated]:
    """A run with its own history and, where it is compressed, with the recent window alone."""
    config, trained = session.config, session.trained_model()
    batches_of = {config.layout.mode: trained.batches}
    if config.layout.mode == "compressed" and trained.recent_batches is not None:
        batches_of["without-tokens"] = trained.recent_batches
    for history, batches in batches_of.items():
        print(f"ranking {name}, {history} history", file=sys.stderr)
        ranks = model_ranks(
            evaluator.predictor("masked", trained.model),
            trained.params,
            trained.model.item_index(trained.params),
            batches(),
            history_items=evaluator.history_items(trained.model),
            chunk=config.eval.chunk,
            lists=False,
        )
        texts = config.model.texts
        about = {
            "run": name,
            "items": "texts" if texts.model else "ids",
            "item_tower": texts.train if texts.model else "",
            "history": history,
        }
        row = split(ranks, session.prepared.counts)
        yield Evaluated(about, ranks, row, _protocol(config, session.prepared.num_items, row))


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.texts_against_ids", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument("runs", nargs="+", help="name=FOLDER of a run of train.py")
    parser.add_argument("--output", default="", help="JSON file of the result")
    args = parser.parse_args()
    rows, ranks = [], dict[str, Ranks]()
    digests: Mapping[str, str] | None = None
    for run in args.runs:
        name, _, folder = run.partition("=")
        if not folder:
            parser.error(f"{run!r}: name=FOLDER is needed")
        try:
            session = load(folder)
            if digests not in (None, session.digests):
                raise ConfigError(f"{folder}: has other data or another split than the runs before")
            digests, config = session.digests, session.config
            for row in evaluated(name, session):
                ranks[row.title], protocol = row.ranks, row.protocol
                rows.append({**row.about, "sequence": protocol.pop("sequence"), **row.figures})
                _print(row)
        except (JaxrecError, OSError) as error:
            parser.exit(2, f"error: {error}\n")
    comparisons = compared(ranks, config)
    for pair, ratios in comparisons.items():
        text = ", ".join(f"{metric} {ratio['mean']:.3f}" for metric, ratio in ratios.items())
        print(f"{pair}: {text}")
    result = timing.report(
        "benchmarks.texts_against_ids",
        rows,
        kind="hllm",
        protocol=protocol,
        digests=digests,
        comparisons=comparisons,
    )
    timing.save(result, args.output)


def _print(row: Evaluated) -> None:
    targets = ", ".join(
        f"{part} {row.figures[part]['ndcg@10']['mean']:.4f} ({row.figures[part]['targets']:,})"
        for part in ("all", "warm", "cold")
        if row.figures[part]["targets"]
    )
    print(f"{row.about['run']:<12} {row.about['history']:<12} ndcg@10 (targets): {targets}")


if __name__ == "__main__":
    main()
