"""Generated returns by backbone, for every experiment: the data and models of `experiments_probe`.

Data: generated (`jaxrec.data.datasets.synthetic`): 3,000 users of 90 events in the mean, returns at
least 24 everyday events after a favourite was last seen.
Layout: 4 x (12 items + 4 tokens) + a recent window of up to 12; width 32, 2 layers.
Argument: `sasrec` (default), `hstu` or `llama`; with `_many` (`sasrec_many`), users have 200 events
in the mean and eight favourites instead of two, and segments 16 items; with `_many_parts`, tokens
also stand for parts of their segment (`model.token_input=parts`, `model.token_distance`).
Hardware and cost: one CPU core, two to four minutes a run.
Quality: tokens close .98 (sasrec), .97 (hstu) and 1.00 (llama) of the gap by NDCG@10 of the
returns, .80 (sasrec_many), .92 (sasrec_many_parts) and .09 (hstu_many, which learns little even
with full history) (`results/experiments_returns`). llama_many was not run.
Command:

    python -m jaxrec.experiments gap --config=configs/experiments_returns.py:sasrec \
        --config.experiments.seeds=0,1 --output=results/experiments_returns/sasrec_gap
"""

import dataclasses

from configs import experiments_probe
from jaxrec.config import recipe_argument
from jaxrec.experiments import probe
from jaxrec.experiments.settings import ExperimentsConfig

MANY, PARTS = "many", "many_parts"
ARGUMENTS = (
    *experiments_probe.ARGUMENTS,
    *(f"{backbone}_{data}" for data in (MANY, PARTS) for backbone in experiments_probe.ARGUMENTS),
)
ABLATIONS = (  # of `_many_parts`
    "tokens of parts:",
    "distance unknown: model.token_distance=False",
    "tokens begin alike: model.token_input=pooled",
    "neither: model.token_input=pooled; model.token_distance=False",
    "means of the parts, as many: model.token_input=mean; layout.tokens=1; "
    "layout.segment_size=4; layout.max_segments=16; layout.recent_min=13",
)


def get_config(argument: str = "sasrec") -> ExperimentsConfig:
    backbone, _, many = recipe_argument(argument, ARGUMENTS).partition("_")
    config = experiments_probe.get_config(backbone)
    if many:  # 95 % of what returns was last seen 36 to 63 events ago
        probe_settings = config.experiments.probe
        probe_settings.data.favourites = 8
        probe_settings.data.events = 200
        probe_settings.segment_size = 16
        # as on planted returns: many small batches (docs/tokens.md)
        probe_settings.batch_size = 8
        probe_settings.steps = 16_000
    holdout = config.experiments.probe.holdout
    settings = dataclasses.replace(
        config.experiments,
        min_events=0,
        last=holdout,
        tokens=(1, 2, 4, 8),
        lengths=(1, 2, 4),
        segments=(2, 4, 8),  # of one the recent window would hold what returns
        baselines=("mean-pooled", "mean-pooled-parts") if many else ("mean-pooled",),
    )
    returns = ExperimentsConfig(**vars(probe.run_of(config)), experiments=settings)
    # validations show whether a training reached its plateau
    returns.train.eval_every = returns.train.checkpoint_every = returns.train.steps // 8
    if many:
        returns.train.validation_users = 500
        # from absolute positions alone full history predicts everyday events worse
        returns.model.sasrec.position_bias = backbone == "sasrec"
    if many == PARTS:
        returns.model.token_input, returns.model.token_distance = "parts", True
        settings.ablations = ABLATIONS
    return returns
