"""Your own interactions: any parquet or CSV file with user, item and timestamp columns.

Data: `--config.data.user_column` and the like name the columns; items with fewer than 5 events
are dropped; the last event of each user is the test, the one before it validation.
Layout: 4 x (100 items + 4 tokens) + a recent window of up to 100, compressed HSTU.
Argument: the file, a glob of files, or empty with `--config.data.path`.
Hardware, cost and quality: those of your data; `--config.train.dry_run=True` prints what a step
needs.
Command:

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
