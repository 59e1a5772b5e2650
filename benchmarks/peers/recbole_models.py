"""RecBole's SASRec as a cell: its data set with augmentation, its loader and loss, our clock.

    RECBOLE/bin/python -m benchmarks.peers.recbole_models --runs=runs/peers --data=ml-100k \
        --name=recbole-sasrec --seed=0 --seconds=120

RECBOLE: an environment with requirements-recbole.txt. Every prefix of a training history is an
example of its own and predicts the event behind it, as RecBole prepares sequences. --set
KEY=VALUE changes a key of its configuration. Settings and where they come from: README.md.
"""

import argparse
import copy
import importlib.metadata
import itertools
import logging
import pathlib
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks.peers import exchange, options, ranking
from benchmarks.peers.exchange import Events, Json, Targets
from benchmarks.peers.watch import Watch, seconds_of

NAME = "recbole-sasrec"
# RecBole's own defaults of SASRec, training and data, but for the batch (README.md)
SETTINGS: Json = {
    "n_layers": 2,
    "n_heads": 2,
    "hidden_size": 64,
    "inner_size": 256,
    "hidden_dropout_prob": 0.5,
    "attn_dropout_prob": 0.5,
    "loss_type": "CE",
    "learning_rate": 0.001,
    "train_batch_size": 256,
}
LENGTH = {"completejourney": 50, "ml-latest-small": 50, "ml-100k": 50}


def write_atomic(events: Events, folder: pathlib.Path) -> None:
    """The training events as RecBole's atomic file; the position stands for the time.

    RecBole sorts by time and that sort may turn ties round: positions have none.
    """
    user, item, _ = exchange.training(events)
    starts = np.flatnonzero(np.diff(user, prepend=-1))
    counts = np.diff(np.append(starts, len(user)))
    position = np.arange(len(user)) - np.repeat(starts, counts)
    rows = zip(user.tolist(), item.tolist(), position.tolist(), strict=True)
    text = "user_id:token\titem_id:token\ttimestamp:float\n"
    text += "".join(f"{u}\t{i}\t{t}\n" for u, i, t in rows)
    target = folder / "events" / "events.inter"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text)


def prepare(events: Events, length: int, seed: int, settings: Json) -> tuple[Any, Any, Any]:
    """(RecBole's training set, loader, model)."""
    from recbole.config import Config
    from recbole.data import create_dataset
    from recbole.data.dataloader import TrainDataLoader
    from recbole.model.sequential_recommender import SASRec
    from recbole.utils import init_seed

    with tempfile.TemporaryDirectory() as folder:
        write_atomic(events, pathlib.Path(folder))
        ours, sys.argv = sys.argv, sys.argv[:1]  # RecBole reads settings from the command line
        config = Config(
            model="SASRec",
            dataset="events",
            config_dict={
                "data_path": folder,
                "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
                "MAX_ITEM_LIST_LENGTH": length,
                "eval_args": {"split": {"RS": [1, 0, 0]}, "order": "TO", "group_by": None},
                "train_neg_sample_args": None,
                "use_gpu": False,
                "seed": seed,
                "show_progress": False,
                "checkpoint_dir": folder,
                "state": "ERROR",
                **settings,
            },
        )
        sys.argv = ours
        init_seed(seed, True)
        dataset = create_dataset(config)
        training = dataset.build()[0]
    loader = TrainDataLoader(config, training, None, shuffle=True)
    return training, loader, SASRec(config, training)


class Scorer:
    """Scores of all items for targets. Items without training events score -inf."""

    def __init__(self, model: Any, training: Any, events: Events, length: int):
        self.model, self.events, self.length = model, events, length
        self.internal = np.zeros(events.num_items + 1, np.int64)
        for token, number in training.field2token_id["item_id"].items():
            if token.isdigit():  # the other one is the padding's
                self.internal[int(token)] = number
        self.known = self.internal > 0

    def inputs(self, targets: Targets) -> tuple[Any, Any]:
        """(sequences filled up on the right, their lengths), one of each target's own."""
        import torch

        items = exchange.windows(self.events, targets, self.length, False, self.known).items
        counts = (items > 0).sum(1)
        places = np.arange(self.length)[None] + (self.length - counts)[:, None]
        moved = np.take_along_axis(items, np.minimum(places, self.length - 1), axis=1)
        moved = np.where(places < self.length, self.internal[moved], 0)
        # of a user without a known item RecBole would read position -1: padding is read instead
        return torch.from_numpy(moved), torch.from_numpy(np.maximum(counts, 1))

    def ranks(self, targets: Targets) -> dict[str, np.ndarray]:
        import torch

        self.model.eval()
        sequences, counts = self.inputs(targets)

        def score(some: slice) -> np.ndarray:
            with torch.no_grad():
                output = self.model.forward(sequences[some], counts[some])
                scores = (output @ self.model.item_embedding.weight.T).numpy()
            return np.where(self.known[None], scores[:, self.internal], -np.inf)

        ranks = ranking.ranks(score, self.events, targets)
        self.model.train()
        return ranks

    def request_flops(self, targets: Targets) -> int:
        """Multiplications and additions x 2 of the products of one request's encoder."""
        import torch
        from torch.utils.flop_counter import FlopCounterMode

        sequences, counts = self.inputs(Targets(*(column[:1] for column in targets)))
        self.model.eval()
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            self.model.forward(sequences, counts)
        return int(counter.get_total_flops())


def endless(loader: Any) -> Iterator[Any]:
    return itertools.chain.from_iterable(itertools.repeat(loader))


def run(args: argparse.Namespace) -> None:
    import torch

    torch.set_num_threads(args.threads)
    events = exchange.load_events(args.runs / args.data / exchange.EVENTS)
    length = args.length or LENGTH[args.data]
    settings = SETTINGS | options.changes(args.set)
    training, loader, model = prepare(events, length, args.seed, settings)
    scorer = Scorer(model, training, events, length)
    validation = exchange.targets(events, "validation", events.validated)
    targets = exchange.targets(events, "test")
    optimizer = torch.optim.Adam(model.parameters(), lr=settings["learning_rate"])

    def evaluate() -> dict[str, float]:
        return ranking.quality(scorer.ranks(validation)["rank"], validation.user)

    def snapshot() -> Any:
        return copy.deepcopy(model.state_dict())

    now = seconds_of(args.clock, args.threads)
    begin, processor = time.monotonic(), time.process_time()
    watch = Watch(args.seconds, args.validations, evaluate=evaluate, snapshot=snapshot, now=now)
    model.train()
    for step, batch in enumerate(endless(loader), 1):
        optimizer.zero_grad()
        model.calculate_loss(batch).backward()
        optimizer.step()
        if watch.tick(step):
            break
    spent = {
        "wall_seconds": time.monotonic() - begin,
        "processor_seconds": time.process_time() - processor,
    }
    model.load_state_dict(watch.best)
    ranks = scorer.ranks(targets)
    flops = scorer.request_flops(targets)
    versions = {n: importlib.metadata.version(n) for n in ("recbole", "torch", "numpy")}
    facts = options.facts(args, events.digest, length, settings, versions)
    facts |= watch.facts() | spent | {"request_flops": flops, "state_bytes": 0}
    facts["test"] = {kind: ranking.quality(r, targets.user) for kind, r in ranks.items()}
    folder = exchange.cell_folder(args.runs, args.data, args.name, args.seed)
    exchange.save_cell(folder, targets, ranks, facts)
    print(f"{args.data} {args.name} seed {args.seed}: {facts['test']}")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers.recbole_models", description=__doc__.split("\n\n")[0]
    )
    options.add(parser)
    options.add_training(parser)
    args = parser.parse_args()
    if not args.name.startswith(NAME):
        parser.error(f"--name={args.name}: needed is {NAME}")
    args.threads = options.use_cores(args.cores)
    logging.disable(logging.INFO)
    run(args)


if __name__ == "__main__":
    main()
