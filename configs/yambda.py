"""Yambda: ten months of listening, split by time, compressed HSTU.

Data: `flat/50m/multi_event.parquet` of `yandex/yambda`, read by `jaxrec.data.datasets.yambda`.
The last hundredth of the time is the test, the hundredth before it validation.
Layout: 8 x (128 items + 4 tokens) + a recent window of up to 128.
Argument: the event types that are kept, comma-separated (default `listen`: a track played for at
least half of its length).
Hardware, cost and quality: not measured.
Command:

    python train.py --config=configs/yambda.py --workdir=runs/yambda \
        --config.data.path=flat/50m/multi_event.parquet
"""

from configs import completejourney_hstu
from jaxrec.config import Config


def get_config(types: str = "listen") -> Config:
    config = completejourney_hstu.get_config()
    config.data.dataset = "yambda"
    config.data.event_types = tuple(filter(None, (types or "listen").split(",")))
    config.data.min_item_events = 20
    config.data.split = "time"
    config.data.validation_time = 0.98
    config.data.test_time = 0.99
    config.layout.segment_size = 128
    config.layout.max_segments = 8
    return config
