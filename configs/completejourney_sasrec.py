"""Compressed SASRec (modern block) on The Complete Journey, rolling last 20 events.

As `completejourney_hstu.py`, with the SASRec backbone. Command:

    python train.py --config=configs/completejourney_sasrec.py --workdir=runs/cj_sasrec
"""

from configs import completejourney_hstu
from jaxrec.config import Config


def get_config(mode: str = "compressed") -> Config:
    config = completejourney_hstu.get_config(mode)
    config.model.backbone = "sasrec"
    return config
