"""Planted long-range structure: early preferences that return after the recent window.

Data: `data.datasets.synthetic`: a user owns six favourites of 100; one that was not seen for 72
events or more comes back after an occasion, which nothing in the recent window of at most 50
events tells. A model that sees the window alone can only guess among the 100 (Recall@10 about
0.1). Layout: 4 x (50 items + 4 tokens) + up to 50 recent items.

Argument: `compressed` (default), `full`, `recent`. The state keeps own items beside its tokens
(`model.repeat_half_lives`), as in the recipes for real data; with `_tokens` behind the argument
(`compressed_tokens`, `full_tokens`, `recent_tokens`) it does not, and what returns must go through
K and V alone, which takes a model of this size far more steps to learn.

Hardware: one CPU core, 4 minutes (compressed, recent) to 15 (full) a run. Commands:

    python train.py --config=configs/synthetic.py --workdir=runs/synthetic
    python train.py --config=configs/synthetic.py:full --workdir=runs/synthetic_full
    python train.py --config=configs/synthetic.py:recent --workdir=runs/synthetic_recent
    python eval.py --config=configs/synthetic.py --workdir=runs/synthetic \
        --config.eval.full_workdir=runs/synthetic_full --output=results/synthetic.json
    python eval.py --config=configs/synthetic.py:recent --workdir=runs/synthetic_recent \
        --output=results/synthetic_recent.json

3,000 steps: after 1,000, where this recipe stood before, compressed found 47 % of the returns and
full 76 % (runs that were not kept).

Figures: column "planted return" in docs/quality.md.
"""

from configs import completejourney_hstu
from jaxrec.config import Config

TOKENS = "_tokens"


def get_config(mode: str = "compressed") -> Config:
    config = completejourney_hstu.get_config(mode.removesuffix(TOKENS))
    config.data.dataset = "synthetic"
    config.data.synthetic.users = 4000
    config.data.synthetic.items = 201
    config.data.synthetic.interests = 20
    config.data.synthetic.events = 300
    config.data.synthetic.gap = 72
    config.data.min_item_events = 1
    config.layout.segment_size = 50
    config.model.repeat_half_lives, config.model.repeat_half_times = (0.0,), ()
    # nothing to overfit in generated data, and its times tell nothing
    config.model.dropout = config.model.embed_dropout = 0.0
    config.model.hstu.time_bias = False
    config.loss.negatives = 200
    config.loss.sampling = "uniform"
    config.train.steps = 3000
    config.train.eval_every = 1000
    config.train.validation_users = 200
    if mode.endswith(TOKENS):
        config.model.repeat_half_lives = ()
        config.loss.kind = "softmax"
        config.train.steps = 5000
    return config
