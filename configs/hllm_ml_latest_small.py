"""HLLM over titles and genres of MovieLens latest-small, the last 10 events of each user.

Items are mean-pooled vectors of SmolLM2-135M (`docs/hllm.md` says how to get it without a model
hub), frozen; the user tower is a small Llama over a learned projection of them.

Argument: `compressed` (default), `full`, `recent`; with `_id` behind it (`compressed_id`) the same
encoder over learned item vectors. Data: `interactions.parquet` and `items.parquet` (columns
user_id, item_id, timestamp; item_id, title, genres) in $JAXREC_ML_LATEST_SMALL. Command:

    JAXREC_ML_LATEST_SMALL=FOLDER python train.py --config=configs/hllm_ml_latest_small.py \
        --config.model.texts.model=smollm2 --workdir=runs/hllm_ml
"""

import os

from jaxrec.config import Config
from jaxrec.errors import ConfigError

MODES = ("compressed", "full", "recent")
FROZEN = "^item_(embedding|mean|scale)"


def get_config(argument: str = "compressed") -> Config:
    mode, _, items = (argument or "compressed").partition("_")
    if mode not in MODES or items not in ("", "id"):
        raise ConfigError(
            f"config argument {argument!r}: allowed are {', '.join(MODES)}, and the same with _id"
        )
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
    if not items:
        config.model.item_width = 576
        config.model.texts.model = "smollm2"
        config.model.texts.fields = ("title", "genres")
        config.model.texts.prompt = ""
        config.model.texts.max_tokens = 128
        config.model.texts.pooling = "mean"
        config.train.frozen = (FROZEN,)
    return config
