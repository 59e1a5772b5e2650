"""KuaiRand: thousands of short videos per user, compressed HSTU.

Data: the `data` folder of KuaiRand-1K or -27K, read by `jaxrec.data.datasets.kuairand`.
Layout: 8 x (128 items + 4 tokens) + a recent window of up to 128.
Argument: the event types that are kept, comma-separated (default `long_view`).
Hardware, cost and quality: not measured.
Command:

    python train.py --config=configs/kuairand.py --workdir=runs/kuairand \
        --config.data.path=KuaiRand-1K/data
"""

from configs import completejourney_hstu
from jaxrec.config import Config


def get_config(types: str = "long_view") -> Config:
    config = completejourney_hstu.get_config()
    config.data.dataset = "kuairand"
    config.data.event_types = tuple(filter(None, (types or "long_view").split(",")))
    config.data.min_item_events = 10
    config.layout.segment_size = 128
    config.layout.max_segments = 8
    return config
