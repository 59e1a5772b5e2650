"""Returns planted into the histories of MovieLens-1M, where a long history must help.

Data: `interactions.parquet` in $JAXREC_ML_1M (the order of the common SASRec file) with planted
returns (`jaxrec.data.datasets.planted`): a twentieth of the films is durable; such a film comes
due 32 to 64 events after the user last had it, and returns after an occasion. Times are not used.
Layout: compressed 6 x (16 + 4 tokens) + a recent window of 16 to 31, which no return reaches; full
history of 127; recent 31.
Argument: `sasrec` (default), `hstu`, `llama` or `hllm`. The last is Llama over frozen vectors of
SmolLM2-135M (docs/hllm.md says how to get it) of titles and genres, read from `items.parquet`
(item_id, title, genres) in the same folder.
Hardware and cost: one CPU core, 15 to 30 minutes a run beside other work.
Quality: one seed, NDCG@10: SASRec .2424 (recent), .2717 (compressed), .2672 (full); HSTU .2411
(recent), .2664 (compressed), .2678 (full); Llama .2418 (recent), .2649 (compressed), .2676 (full);
HLLM .2233 (recent), .2361 (compressed), .2430 (full) (results/experiments_planted).
Command:

    python -m jaxrec.experiments gap --config=configs/experiments_planted.py:sasrec \
        --output=results/experiments_planted/sasrec
"""

import os

from configs import ml1m
from jaxrec.config import recipe_argument
from jaxrec.experiments.settings import ExperimentsConfig, ExperimentsSettings

LLAMA = ("llama", "hllm")
ARGUMENTS = (*ml1m.BACKBONES, *LLAMA)
ABLATIONS = (  # of sasrec: what holds full history back, in short trainings
    "full history: layout.mode=full; layout.tokens=1; model.token_input=learned; "
    "model.token_distance=False; train.steps=4000; train.learning_rate=0.004",
    "dropout of item vectors: model.embed_dropout=0.2",
    "both: model.dropout=0.2; model.embed_dropout=0.2",
    "twice the rate: train.learning_rate=0.008",
    "four heads: model.heads=4",
)
STEPS = {"sasrec": 12_000, "hstu": 12_000, "llama": 12_000, "hllm": 8_000}


def get_config(argument: str = "sasrec") -> ExperimentsConfig:
    backbone = recipe_argument(argument, ARGUMENTS)
    base = "sasrec" if backbone in LLAMA else backbone
    config = ExperimentsConfig(**vars(ml1m.get_config(f"compressed_{base}")))
    config.data.dataset = "planted"
    # where it is not set, the error about the missing file names it
    folder = os.environ.get(ml1m.VARIABLE, f"${ml1m.VARIABLE}")
    config.data.path = os.path.join(folder, "interactions.parquet")
    config.data.min_item_events = config.data.min_user_events = 1
    config.data.holdout = 20
    config.data.planted.durable = 0.05
    config.data.planted.rate = 0.3
    config.layout.segment_size = 16
    config.layout.max_segments = 6
    config.layout.recent_min = 16
    config.eval.filter_seen = False  # what returns was seen
    config.loss.kind = "sampled_softmax"
    config.loss.negatives = 512
    config.train.length_buckets = 4
    if backbone not in LLAMA:  # with dropout old events are learned far more slowly
        config.model.dropout = config.model.embed_dropout = 0.0
    if backbone == "sasrec":
        config.train.learning_rate = 8e-3
    config.train.steps = STEPS[backbone]
    config.train.eval_every = config.train.checkpoint_every = 1000
    if backbone == "hstu":
        config.model.layers = 4  # 82,000 weights; two blocks of SASRec have 98,000
    config.model.token_input, config.model.token_distance = "parts", True
    if backbone in LLAMA:
        config.model.backbone = "llama"
        config.model.sasrec.position_bias = False
        # one data set for both: their rows are paired
        config.data.items_path = os.path.join(folder, "items.parquet")
        config.data.text_columns = ("title", "genres")
    if backbone == "hllm":
        config.model.item_bias = False  # texts are to find items without events, too
        config.loss.similarity = "cosine"  # products of vectors of texts begin far from each other
        config.model.item_width = 576
        config.model.texts.model = "smollm2"
        config.model.texts.fields = config.data.text_columns
        config.model.texts.prompt = ""
        config.model.texts.max_tokens = 128
        config.model.texts.pooling = "mean"
        config.model.texts.cache_dir = "runs/item_vectors"
    config.train.validation_users = 1000
    config.experiments = ExperimentsSettings(
        seeds=(0, 1, 2), users=2000, min_events=128, last=20, ablations=ABLATIONS
    )
    return config
