"""Planted long-range structure: early preferences that return after the recent window.

Data: `jaxrec.data.datasets.synthetic`. A user has six favourites out of 100; one that was not
seen for 72 events or more comes back after an occasion, which nothing in the recent window of at
most 50 events tells. A model that sees the window alone can only guess among the 100 (Recall@10
of about 0.1).
Layout: 4 x (50 items + 4 tokens) + a recent window of up to 50.
Argument: `compressed` (default), `full` or `recent`. The state keeps history items beside its
tokens (`model.repeat_half_lives`), as in the recipes for real data. Followed by `_tokens`
(`compressed_tokens`) it does not: what returns must go through keys and values alone, which takes
a model of this size far more steps to learn.
Hardware and cost: one CPU core, 4 minutes (compressed, recent) to 15 (full) a run.
Quality: Recall@10 of planted returns is 0.868 [0.856, 0.880] compressed, 0.845 [0.833, 0.857] full
(`results/synthetic.json`), and 0.022 [0.017, 0.026] with the recent window alone
(`results/synthetic_recent.json`).
Commands:

    python train.py --config=configs/synthetic.py --workdir=runs/synthetic
    python train.py --config=configs/synthetic.py:full --workdir=runs/synthetic_full
    python train.py --config=configs/synthetic.py:recent --workdir=runs/synthetic_recent
    python eval.py --config=configs/synthetic.py --workdir=runs/synthetic \
        --config.eval.full_workdir=runs/synthetic_full --output=results/synthetic.json
    python eval.py --config=configs/synthetic.py:recent --workdir=runs/synthetic_recent \
        --output=results/synthetic_recent.json
"""

from configs import completejourney_hstu
from jaxrec.config import Config, recipe_argument

MODES = ("compressed", "full", "recent")
TOKENS = "_tokens"  # after the mode: no history items in the scores
ARGUMENTS = (*MODES, *(f"{mode}{TOKENS}" for mode in MODES))


def get_config(mode: str = "compressed") -> Config:
    mode = recipe_argument(mode, ARGUMENTS)
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
    # generated data cannot be overfitted, and its times carry no information
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
