"""Your own interactions: any parquet or CSV file with user, item and timestamp columns.

Data: `--config.data.user_column` and the like name the columns; items with fewer than 5 events
are dropped; the last event of each user is the test, the one before it validation.
Layout: what histories of this length ask for, and so are model, loss and training. The values
below suit most data. Commands replace them by the advice of `jaxrec.data.advice` once the command
line is read and the data is prepared: a recipe is read before that, so it cannot know which
columns and filters there are. What you set yourself stays, and a run that was started keeps what it
was started with. `jaxrec describe` prints each value with its reason, and with
`--recipe=FILE.py` writes them as a recipe of your own, which nothing changes any more.
Argument: the file, a glob of files, or empty with `--config.data.path`.
Hardware, cost and quality: those of your data; `--config.train.dry_run=True` prints what a step
needs.
Command:

    jaxrec train --config=configs/table.py:events.parquet --workdir=runs/mine \
        --config.data.user_column=customer --config.data.item_column=product \
        --config.data.time_column=time
"""

from jaxrec.api.defaults import table_config
from jaxrec.config import Config

ADVISED = True  # jaxrec.data.advised


def get_config(path: str = "") -> Config:
    config = table_config()
    config.data.path = path
    return config
