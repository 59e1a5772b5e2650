"""EB-NeRD: news clicks of six weeks, split by time. Argument: train, validation or empty for both.

Data: an unpacked bundle (demo, small or large) of recsys.eb.dk, read by
`jaxrec.data.datasets.ebnerd`. News is young: the last tenth of the time tests, the tenth before it
validates. Layout: 4 x (100 + 4) + recent window of up to 100. Command:

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
