"""RecTools' SASRec and HSTU as cells: its data loader, losses and trainer, our clock and ranks.

    RECTOOLS/bin/python -m benchmarks.peers.rectools_models --runs=runs/peers --data=ml-100k \
        --name=rectools-hstu --seed=0 --seconds=120

RECTOOLS: an environment with requirements-rectools.txt. --set KEY=VALUE changes an argument of the
model. Settings and where they come from: README.md.
"""

import argparse
import copy
import importlib.metadata
import logging
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.peers import exchange, options, ranking
from benchmarks.peers.exchange import Events, Json, Targets
from benchmarks.peers.watch import Watch, seconds_of

# of the tutorial on HSTU in RecTools' documentation (MovieLens-1M, length 200), with the loss
# that RecTools has by default and a batch that gives small data enough steps (README.md)
TUTORIAL: Json = {
    "n_factors": 50,
    "n_blocks": 2,
    "n_heads": 1,
    "dropout_rate": 0.2,
    "loss": "softmax",
    "lr": 0.001,
    "batch_size": 16,
}
COSINE = {"lightning_module_kwargs": {"logits_t": 0.05}}
SETTINGS: dict[str, Json] = {
    "rectools-hstu": TUTORIAL | COSINE,
    "rectools-sasrec": TUTORIAL,
}
LENGTH = {"completejourney": 100, "ml-latest-small": 200, "ml-100k": 200}


class Scorer:
    """Scores of all items for targets, by the model's own encoder.

    known: bool [V + 1], items of the model's vocabulary; others score -inf.
    """

    def __init__(self, model: Any, events: Events, length: int):
        ids = model.data_preparator.item_id_map
        self.model, self.events, self.length = model, events, length
        self.internal = np.zeros(events.num_items + 1, np.int64)
        external = ids.get_external_sorted_by_internal()
        for number, item in enumerate(external):
            if isinstance(item, int | np.integer):  # the others are the padding's
                self.internal[item] = number
        self.known = self.internal > 0

    def ranks(self, targets: Targets) -> dict[str, np.ndarray]:
        """Ranks of the targets; rows of a user share one forward pass."""
        import torch

        module = self.model.lightning_model
        module.eval()
        windows = exchange.windows(self.events, targets, self.length, True, self.known)
        with torch.no_grad():
            similar = module.torch_model.similarity_module
            table = module.torch_model.item_model.get_all_embeddings()
            encoded = torch.cat(
                [
                    module.torch_model.encode_sessions(self.batch(windows, some), table)
                    for some in _slices(len(windows.items), 32)
                ]
            )
            queries = encoded[windows.row, windows.slot]

            def score(some: slice) -> np.ndarray:
                scores = similar(queries[some][:, None], table)[:, 0].numpy()
                return np.where(self.known[None], scores[:, self.internal], -np.inf)

            ranks = ranking.ranks(score, self.events, targets)
        module.train()
        return ranks

    def batch(self, windows: exchange.Windows, some: slice) -> Json:
        import torch

        return {
            "x": torch.from_numpy(self.internal[windows.items[some]]),
            "unix_ts": torch.from_numpy(windows.times[some]),
        }

    def request_flops(self, targets: Targets) -> int:
        """Multiplications and additions x 2 of the products of one request's encoder."""
        import torch
        from torch.nn.attention import SDPBackend, sdpa_kernel
        from torch.utils.flop_counter import FlopCounterMode

        first = Targets(*(column[:1] for column in targets))
        windows = exchange.windows(self.events, first, self.length, True, self.known)
        module = self.model.lightning_model.eval()
        # the counter does not know the fused attention of CPUs
        plain = sdpa_kernel(SDPBackend.MATH)
        with torch.no_grad(), plain, FlopCounterMode(display=False) as counter:
            table = module.torch_model.item_model.get_all_embeddings()
            module.torch_model.encode_sessions(self.batch(windows, slice(0, 1)), table)
        return int(counter.get_total_flops())


def _slices(count: int, size: int) -> list[slice]:
    return [slice(start, start + size) for start in range(0, count, size)]


def dataset_of(events: Events) -> Any:
    """RecTools' data set of the training events."""
    import pandas as pd
    from rectools.dataset import Dataset

    user, item, moment = exchange.training(events)
    columns = {
        "user_id": user,
        "item_id": item,
        "weight": 1.0,
        "datetime": pd.to_datetime(moment, unit="s"),
    }
    return Dataset.construct(pd.DataFrame(columns))


def make_callback(start: Callable[[], Watch[Any]]) -> Any:
    """A Lightning callback that asks the watch after every step. start: begins the clock."""
    from pytorch_lightning.callbacks import Callback

    class Ticks(Callback):
        watch: Watch[Any]

        def __deepcopy__(self, memo: Any) -> "Ticks":
            return self  # RecTools copies its trainer before it trains

        def on_train_start(self, trainer: Any, module: Any) -> None:
            self.watch = start()

        def on_train_batch_end(self, trainer: Any, module: Any, *rest: Any) -> None:
            if self.watch.tick(trainer.global_step):
                trainer.should_stop = True

    return Ticks()


def build(name: str, length: int, settings: Json, callback: Any = None) -> Any:
    """The model, with a trainer that goes on until the callback stops it."""
    from pytorch_lightning import Trainer
    from rectools.models import HSTUModel, SASRecModel
    from rectools.models.nn.item_net import IdEmbeddingsItemNet

    def trainer() -> Any:
        return Trainer(
            accelerator="cpu",
            max_epochs=-1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[callback],
        )

    kind = {"rectools-hstu": HSTUModel, "rectools-sasrec": SASRecModel}[name]
    return kind(
        session_max_len=length,
        item_net_block_types=(IdEmbeddingsItemNet,),
        get_trainer_func=trainer if callback is not None else None,
        **settings,
    )


def run(args: argparse.Namespace) -> None:
    import pytorch_lightning
    import torch

    torch.set_num_threads(args.threads)
    pytorch_lightning.seed_everything(args.seed, verbose=False)
    events = exchange.load_events(args.runs / args.data / exchange.EVENTS)
    length = args.length or LENGTH[args.data]
    settings = SETTINGS[args.name] | options.changes(args.set)
    validation = exchange.targets(events, "validation", events.validated)
    targets = exchange.targets(events, "test")

    def start() -> Watch[Any]:
        scorer = Scorer(model, events, length)

        def evaluate() -> dict[str, float]:
            return ranking.quality(scorer.ranks(validation)["rank"], validation.user)

        def snapshot() -> Any:
            return copy.deepcopy(model.lightning_model.torch_model.state_dict())

        now = seconds_of(args.clock, args.threads)
        return Watch(args.seconds, args.validations, evaluate=evaluate, snapshot=snapshot, now=now)

    callback = make_callback(start)
    model = build(args.name, length, settings, callback)
    begin, processor = time.monotonic(), time.process_time()
    model.fit(dataset_of(events))
    spent = {
        "wall_seconds": time.monotonic() - begin,
        "processor_seconds": time.process_time() - processor,
    }
    watch = callback.watch
    if not watch.stopped:  # Lightning ends quietly after SIGTERM
        raise SystemExit("cut off; the same command starts this cell again")
    model.lightning_model.torch_model.load_state_dict(watch.best)
    scorer = Scorer(model, events, length)
    ranks = scorer.ranks(targets)
    flops = scorer.request_flops(targets)
    versions = {n: importlib.metadata.version(n) for n in ("rectools", "torch", "numpy")}
    facts = options.facts(args, events.digest, length, settings, versions)
    facts |= watch.facts() | spent | {"request_flops": flops, "state_bytes": 0}
    facts["test"] = {kind: ranking.quality(r, targets.user) for kind, r in ranks.items()}
    folder = exchange.cell_folder(args.runs, args.data, args.name, args.seed)
    exchange.save_cell(folder, targets, ranks, facts)
    print(f"{args.data} {args.name} seed {args.seed}: {facts['test']}")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers.rectools_models", description=__doc__.split("\n\n")[0]
    )
    options.add(parser)
    options.add_training(parser)
    args = parser.parse_args()
    if args.name not in SETTINGS:
        parser.error(f"--name={args.name}: allowed are {', '.join(SETTINGS)}")
    args.threads = options.use_cores(args.cores)
    warnings.filterwarnings("ignore", category=UserWarning)
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    run(args)


if __name__ == "__main__":
    main()
