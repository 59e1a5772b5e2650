"""Planted long-range structure: early preferences that return after the recent window.

Data: `data.datasets.synthetic`, where an event either follows the user's current interests or
returns to a preference planted more than `gap` events earlier; the return cannot be predicted
from the recent window. Argument: `compressed` (default), `full`, `recent`. Command:

    python train.py --config=configs/synthetic.py --workdir=runs/synthetic
"""

from configs import completejourney_hstu
from jaxrec.config import Config


def get_config(mode: str = "compressed") -> Config:
    config = completejourney_hstu.get_config(mode)
    config.data.dataset = "synthetic"
    config.data.min_item_events = 1
    config.train.steps = 1500
    config.train.eval_every = 500
    return config
