"""MovieLens-1M by the published protocol: leave-one-out, length 200, full ranking of 3,416 items.

Data: `interactions.parquet` in $JAXREC_ML_1M (columns user_id, item_id, timestamp; the order of
the common SASRec file); where that is not set, GroupLens' zip is downloaded. Items with fewer
than 5 ratings are dropped; seen items are no candidates; times are not used.
Layout: `full` is one segment of 200 items; `compressed` is 6 x (25 items + 4 tokens) + a recent
window of 26 to 50, of which a request pays for the window alone; `recent` is the newest 50.
Argument: MODE or MODE_BACKBONE. MODE: `full` (default), `compressed` or `recent`; BACKBONE:
`sasrec` (default, modern block) or `hstu`.
Hardware and cost: one CPU core, about 45 minutes: 14,400 steps, 38 passes over the users.
Quality: Recall@10 .3412 and NDCG@10 .2001 (full), .3397 and .1986 (compressed), .3325 and .1960
(recent), one seed (results/experiments_ml1m/sasrec); published models are at .2843 to .3164 and
.1537 to .1857 by this protocol. HSTU was not measured.
Command:

    jaxrec train --config=configs/ml1m.py:full --workdir=runs/ml1m
"""

import os

from jaxrec.config import Config, recipe_argument

VARIABLE = "JAXREC_ML_1M"
MODES = ("full", "compressed", "recent")
BACKBONES = ("sasrec", "hstu")
ARGUMENTS = (*MODES, *(f"{mode}_{backbone}" for mode in MODES for backbone in BACKBONES))


def get_config(argument: str = "full") -> Config:
    mode, _, backbone = recipe_argument(argument, ARGUMENTS).partition("_")
    config = Config()
    folder = os.environ.get(VARIABLE, "")
    if folder:
        config.data.dataset = "table"
        config.data.path = os.path.join(folder, "interactions.parquet")
    else:
        config.data.dataset = "movielens"
        config.data.variant = "1m"
    # the common file is filtered already
    config.data.min_item_events = 1 if folder else 5
    config.data.min_user_events = 1 if folder else 5
    config.layout.mode = mode
    config.layout.segment_size = 25
    config.layout.tokens = 4
    config.layout.max_segments = 6
    config.layout.recent_min = 26
    config.model.backbone = backbone or "sasrec"
    config.model.width = 64
    config.model.layers = 2
    config.model.heads = 2
    config.model.item_bias = True
    config.model.token_input = "pooled"
    config.model.hstu.time_bias = False
    config.model.sasrec.position_bias = config.model.backbone == "sasrec"
    config.loss.kind = "softmax"
    # small batches and a high rate learn far more from as many events (docs/tokens.md); every
    # layout has as many positions in a step
    config.train.batch_size = 64 if mode == "recent" else 16
    config.train.length_buckets = 1 if mode == "recent" else 8
    # the rate falls to its end, so the last steps settle; averaged parameters
    config.train.learning_rate = 4e-3
    config.train.ema = 0.999
    config.train.steps = 14_400
    config.train.eval_every = config.train.checkpoint_every = 1200
    config.train.validation_users = 3000
    config.train.patience = 8
    config.eval.filter_seen = True
    return config
