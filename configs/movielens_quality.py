"""Quality on small MovieLens data: HSTU over the full history, length 200, leave-one-out.

Data: a table `interactions.parquet` or `.csv` (columns user_id, item_id, timestamp) in
$JAXREC_ML_LATEST_SMALL or $JAXREC_ML_100K; where that is not set, GroupLens' zip is downloaded.
Layout: full history; `compressed` is 3 x (50 items + 4 tokens) + a recent window of up to 50.
Argument: DATA or DATA_MODE. DATA: `latest-small` (default) or `100k`. MODE: `full` (default),
`compressed`, `no-time` (full, no relative time bias), `sasrec` (modern block) or `classic`
(SASRec of 2018).
Hardware and cost: 2 CPU cores, 2 minutes.
Quality after 80 s of training on one core, three seeds: NDCG@10 0.029 [0.020, 0.039]
(latest-small) and 0.078 [0.066, 0.091] (100k). With seen items filtered it is 1.7 and 1.2
times the best of RecTools and RecBole (`results/quality.json`, `benchmarks/peers/RESULTS.md`).
Command:

    python train.py --config=configs/movielens_quality.py:latest-small --workdir=runs/ml_small
"""

import os

from jaxrec.config import Config, recipe_argument

VARIABLES = {"latest-small": "JAXREC_ML_LATEST_SMALL", "100k": "JAXREC_ML_100K"}
MODES = ("full", "compressed", "no-time", "sasrec", "classic")
ARGUMENTS = (*VARIABLES, *(f"{data}_{mode}" for data in VARIABLES for mode in MODES))


def get_config(argument: str = "latest-small") -> Config:
    variant, _, mode = recipe_argument(argument, ARGUMENTS).partition("_")
    mode = mode or "full"
    config = Config()
    folder = os.environ.get(VARIABLES[variant], "")
    if folder:
        config.data.dataset = "table"
        names = ("interactions.parquet", "interactions.csv")
        files = [os.path.join(folder, name) for name in names]
        config.data.path = next((file for file in files if os.path.isfile(file)), files[0])
    else:
        config.data.dataset = "movielens"
        config.data.variant = variant
    config.data.min_item_events = 1
    config.layout.mode = "compressed" if mode == "compressed" else "full"
    config.layout.segment_size = 50
    config.layout.tokens = 4
    config.layout.max_segments = 3
    config.model.width = 64
    config.model.layers = 2
    config.model.heads = 2
    config.model.dropout = config.model.embed_dropout = 0.3
    if mode in ("sasrec", "classic"):
        config.model.backbone = "sasrec"
        config.model.sasrec.block = "modern" if mode == "sasrec" else "classic"
    config.model.hstu.time_bias = mode != "no-time"
    # nobody rates a film twice: a learned weight of items in the history, which may be negative
    config.model.repeat_half_lives = (0.0,)
    config.loss.kind = "sampled_softmax"
    config.loss.negatives = 1024
    # an epoch is some hundred windows: small batches take many steps from it
    config.train.batch_size = 8
    config.train.learning_rate = 2e-3
    config.train.warmup = 50
    config.train.steps = 2000
    config.train.eval_every = 200
    config.train.checkpoint_every = 500
    config.train.validation_users = 0
    return config
