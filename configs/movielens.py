"""MovieLens, leave-one-out, HSTU over the full history, length 200.

Data: downloaded, or read from `--config.data.path=ml-1m.zip`.
Layout: full history; histories are short, so nothing is compressed.
Argument: the variant, `latest-small` (default), `100k`, `1m`, `20m` or `25m`.
Hardware, cost and quality: not measured; the tuned recipe for the two small variants is
`movielens_quality.py`.
Command:

    python train.py --config=configs/movielens.py:1m --workdir=runs/ml1m
"""

from jaxrec.config import Config


def get_config(variant: str = "latest-small") -> Config:
    config = Config()
    config.data.dataset = "movielens"
    config.data.variant = variant or "latest-small"
    config.data.min_item_events = 1
    config.layout.mode = "full"
    config.layout.segment_size = 50
    config.layout.max_segments = 3
    config.model.layers = 2
    config.model.heads = 2
    config.train.batch_size = 64
    return config
