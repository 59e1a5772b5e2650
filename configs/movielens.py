"""MovieLens, leave-one-out, HSTU at length 200. Argument: the variant (default latest-small).

Data: `latest-small`, `100k`, `1m`, `20m` or `25m`; downloaded, or read from
`--config.data.path=ml-1m.zip`. Histories are short: full history is the default here. Command:

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
