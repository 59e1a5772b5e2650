"""Your own interactions: any parquet or CSV file with user, item and timestamp columns.

    python train.py --config=configs/table.py:events.parquet --workdir=runs/mine \
        --config.data.user_column=customer --config.data.item_column=product \
        --config.data.time_column=time
"""

from configs import completejourney_hstu
from jaxrec.config import Config


def get_config(path: str = "") -> Config:
    config = completejourney_hstu.get_config()
    config.data.dataset = "table"
    config.data.path = path
    config.data.holdout = 1
    config.data.min_item_events = 5
    return config
