"""The planted signal by backbone, seeds 0 to 2: what tokens return of what is planted.

Data: generated (`jaxrec.data.datasets.synthetic`): 3,000 users of 90 events in the mean, returns at
least 24 everyday events after a favourite was last seen.
Layout: 4 x (12 items + 4 tokens) + a recent window of up to 12; width 32, 2 layers.
Argument: `hstu` (default), `sasrec` or `llama`.
Hardware and cost: one CPU core, two minutes a run, twelve runs.
Quality: `results/probe/hstu` and `results/probe/sasrec`; llama was not measured.
Command:

    python -m jaxrec.experiments probe --config=configs/experiments_probe.py:hstu \
        --output=results/probe/hstu
"""

from configs import experiments_quick
from jaxrec.config import recipe_argument
from jaxrec.experiments.settings import ExperimentsConfig

ARGUMENTS = ("hstu", "sasrec", "llama")


def get_config(backbone: str = "hstu") -> ExperimentsConfig:
    config = experiments_quick.get_config()
    config.model.backbone = recipe_argument(backbone, ARGUMENTS)
    config.model.token_input = "pooled"
    # times of generated data carry no information
    config.model.hstu.time_bias = False
    config.experiments.seeds = (0, 1, 2)
    config.experiments.users = 0
    config.experiments.probe.steps = 5000
    return config
