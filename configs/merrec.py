"""MerRec: lifelong shopping histories, compressed HSTU. Argument: the event types (default: all).

Data: parquet shards of `mercari-us/merrec` (1.27 billion events; a shard is enough to start), read
by `jaxrec.data.datasets.merrec`; a product seen again right after itself counts once, users and
items with fewer than 20 events go. Layout: 4 x (100 + 4) + recent window of up to 100. Command:

    python train.py --config=configs/merrec.py --workdir=runs/merrec \
        --config.data.path=merrec/20230501

`--config=configs/merrec.py:buy_comp,offer_make` trains on these events alone.
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
