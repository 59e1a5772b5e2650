"""EB-NeRD: news clicks of six weeks, split by time, compressed HSTU.

Data: an unpacked bundle (demo, small or large) of recsys.eb.dk, read by
`jaxrec.data.datasets.ebnerd`. News is short-lived, so the split is by time: the last tenth is
the test, the tenth before it validation.
Layout: 4 x (100 items + 4 tokens) + a recent window of up to 100.
Argument: `train`, `validation`, or empty for both parts of the bundle (default).
Hardware, cost and quality: not measured.
Command:

    python train.py --config=configs/ebnerd.py --config.data.path=ebnerd_small --workdir=runs/ebnerd
"""

from configs import completejourney_hstu
from jaxrec.config import Config


def get_config(variant: str = "") -> Config:
    config = completejourney_hstu.get_config()
    config.data.dataset = "ebnerd"
    config.data.variant = variant
    config.data.duplicates = "drop"
    config.data.min_item_events = 5
    config.data.split = "time"
    return config
