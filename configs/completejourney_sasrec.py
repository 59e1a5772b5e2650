"""Compressed SASRec (modern block) on The Complete Journey, rolling last 20 events.

As `completejourney_hstu.py`, with the SASRec backbone. Hardware: 2 CPU cores. Commands:

    python train.py --config=configs/completejourney_sasrec.py --workdir=runs/cj_sasrec
    python train.py --config=configs/completejourney_sasrec.py:full --workdir=runs/cj_sasrec_full
    python eval.py --config=configs/completejourney_sasrec.py --workdir=runs/cj_sasrec \
        --config.eval.full_workdir=runs/cj_sasrec_full --output=results/completejourney_sasrec.json

`--config.model.sasrec.block=classic` is the post-norm block of the paper. Figures:
docs/quality.md.
"""

from configs import completejourney_hstu
from jaxrec.config import Config


def get_config(mode: str = "compressed") -> Config:
    config = completejourney_hstu.get_config(mode)
    config.model.backbone = "sasrec"
    return config
