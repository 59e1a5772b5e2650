"""Experiments on MovieLens-1M by the published protocol (`ml1m.py`), models trained to a plateau.

Data and layout: as `ml1m.py`: full history of 200, compressed 6 x (25 + tokens) + 26 to 50, recent
50; all 6,040 users, seen items filtered.
Argument: BACKBONE, `sasrec` (default) or `hstu`.
Hardware and cost: one CPU core, about 45 minutes a run; `--only` lets runs share the cores.
Quality: SASRec, one seed, NDCG@10 .1960 (recent), .1986 (compressed), .2001 (full): history
adds little here, if anything (results/experiments_ml1m/sasrec). HSTU was not measured.
Command:

    python -m jaxrec.experiments gap --config=configs/experiments_ml1m.py:sasrec \
        --output=results/experiments_ml1m/sasrec
"""

from configs import ml1m
from jaxrec.config import recipe_argument
from jaxrec.experiments.settings import ExperimentsConfig, ExperimentsSettings

ARGUMENTS = ml1m.BACKBONES


def get_config(backbone: str = "sasrec") -> ExperimentsConfig:
    backbone = recipe_argument(backbone, ARGUMENTS)
    config = ExperimentsConfig(**vars(ml1m.get_config(f"compressed_{backbone}")))
    config.experiments = ExperimentsSettings(seeds=(0,), users=0, tokens=(1, 4, 16), last=1)
    return config
