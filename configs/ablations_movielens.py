"""What each setting of the recipe for small MovieLens data is worth.

Data: as `movielens_quality.py`, but the last 5 events of a user are tested, not the last one:
610 targets would tell settings apart by luck.
Layout: the base row is the full history, length 200, trained for 600 steps instead of 2,000.
Argument: the data set, `latest-small` (default) or `100k`.
Hardware and cost: one CPU core, an hour; two seeds.
Quality: `results/ablations/ml-latest-small/ablations.md`; the base row has NDCG@10 0.031
[0.025, 0.038]. What follows from it: docs/recipes.md. `100k` was not measured.
Command:

    python -m jaxrec.experiments ablations --config=configs/ablations_movielens.py:latest-small \
        --output=results/ablations/ml-latest-small
"""

from configs import movielens_quality
from jaxrec.experiments.settings import ExperimentsConfig, ExperimentsSettings

ROWS = (
    "recipe: layout.mode=full; layout.tokens=1",
    "compressed: layout.mode=compressed; layout.tokens=4",
    "batches of 32, as many windows: train.batch_size=32; train.steps=150; train.eval_every=50",
    "popularity in the scores: model.item_bias=True",
    "no time bias: model.hstu.time_bias=False",
    "time of the request known: model.request_time=True",
    "modern SASRec: model.backbone=sasrec",
    "classic SASRec: model.backbone=sasrec; model.sasrec.block=classic",
    "softmax over the catalog, own films not known: loss.kind=softmax; model.repeat_half_lives=()",
    "own films not known: model.repeat_half_lives=()",
    "128 negatives: loss.negatives=128",
    "negatives not shared: loss.negatives=128; loss.negative_groups=8",
    "no logQ correction: loss.log_q=False",
    "cosine, temperature 0.05: loss.similarity=cosine; loss.temperature=0.05",
    "cosine, learned scale: loss.similarity=cosine",
    "less dropout: model.dropout=0.1; model.embed_dropout=0.1",
    "more dropout: model.dropout=0.5; model.embed_dropout=0.5",
    "items dropped: train.item_dropout=0.1",
    "weight decay: train.weight_decay=0.1",
    "averaged parameters: train.ema=0.99",
)


def get_config(variant: str = "latest-small") -> ExperimentsConfig:
    run = movielens_quality.get_config(f"{variant or 'latest-small'}_compressed")
    config = ExperimentsConfig(**vars(run))
    config.data.holdout = 5
    config.train.steps = config.train.checkpoint_every = 600
    config.experiments = ExperimentsSettings(seeds=(0, 1), users=0, ablations=ROWS)
    return config
