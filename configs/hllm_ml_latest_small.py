"""HLLM on titles and genres of MovieLens latest-small.

Items are frozen, mean-pooled vectors of SmolLM2-135M (docs/hllm.md says how to get it without a
model hub). The user tower is a small Llama over a learned projection of them.
Data: `interactions.parquet` (user_id, item_id, timestamp) and `items.parquet` (item_id, title,
genres) in $JAXREC_ML_LATEST_SMALL; the last 10 events of each user are tested.
Layout: 4 x (50 items + 4 tokens) + a recent window of up to 50.
Argument: `compressed` (default), `full` or `recent`; followed by `_id` (`compressed_id`) the same
encoder over learned item vectors.
Hardware: CPU; the cost was not recorded.
Quality, with a split by time instead: NDCG@10 0.032 [0.025, 0.039], over ids 0.044
[0.036, 0.053] (`results/hllm.json`).
Command:

    JAXREC_ML_LATEST_SMALL=FOLDER python train.py --config=configs/hllm_ml_latest_small.py \
        --config.model.texts.model=smollm2 --workdir=runs/hllm_ml
"""

import os

from jaxrec.config import Config, recipe_argument

MODES = ("compressed", "full", "recent")
ARGUMENTS = (*MODES, *(f"{mode}_id" for mode in MODES))


def get_config(argument: str = "compressed") -> Config:
    mode, _, items = recipe_argument(argument, ARGUMENTS).partition("_")
    config = Config()
    folder = os.environ.get("JAXREC_ML_LATEST_SMALL", "ml-latest-small")
    config.data.dataset = "table"
    config.data.path = os.path.join(folder, "interactions.parquet")
    config.data.items_path = os.path.join(folder, "items.parquet")
    config.data.text_columns = ("title", "genres")
    config.data.min_item_events = 5
    config.data.holdout = 10
    config.layout.mode = mode
    config.layout.segment_size = 50
    config.layout.tokens = 4
    config.layout.max_segments = 4
    config.model.backbone = "llama"
    config.model.width = 64
    config.model.layers = 2
    config.model.heads = 2
    config.model.llama.kv_heads = 1
    config.model.llama.time_bias = True
    # items without training events are nobody's negatives: their texts stay recommendable
    config.loss.kind = "sampled_softmax"
    config.loss.sampling = "popularity"
    config.loss.negatives = 1024
    config.train.batch_size = 32
    config.train.learning_rate = 2e-3
    config.train.steps = 600
    config.train.eval_every = 200
    config.train.checkpoint_every = 200
    config.train.validation_users = 0
    if items != "id":
        config.model.item_width = 576
        config.model.texts.model = "smollm2"
        config.model.texts.fields = ("title", "genres")
        config.model.texts.prompt = ""
        config.model.texts.max_tokens = 128
        config.model.texts.pooling = "mean"
    return config
