"""MerRec: lifelong shopping histories, compressed HSTU.

Data: parquet shards of `mercari-us/merrec` (1.27 billion events; one shard is enough to start),
read by `jaxrec.data.datasets.merrec`. A product that is seen again right after itself counts
once; users and items with fewer than 20 events are dropped.
Layout: 4 x (100 items + 4 tokens) + a recent window of up to 100.
Argument: the event types that are kept, comma-separated, such as `buy_comp,offer_make`
(default: all).
Hardware, cost and quality: not measured.
Command:

    python train.py --config=configs/merrec.py --workdir=runs/merrec \
        --config.data.path=merrec/20230501
"""

from configs import completejourney_hstu
from jaxrec.config import Config


def get_config(types: str = "") -> Config:
    config = completejourney_hstu.get_config()
    config.data.dataset = "merrec"
    config.data.event_types = tuple(filter(None, types.split(",")))
    config.data.repeats = "consecutive"
    config.data.min_item_events = 20
    config.data.min_user_events = 20
    config.data.holdout = 1
    return config
