"""Amazon reviews of one category, 5-core, leave-one-out.

Data: ratings or reviews and item metadata, downloaded by you, read by
`jaxrec.data.datasets.amazon_reviews`.
Layout: full history, up to 99 items. Histories are short (median below 10), so nothing is
compressed.
Argument: the release, `2014` or `2023` (default).
Hardware, cost and quality: not measured.
Command:

    python train.py --config=configs/amazon.py:2023 --workdir=runs/books \
        --config.data.path=Books.jsonl.gz --config.data.items_path=meta_Books.jsonl.gz
"""

from jaxrec.config import Config


def get_config(variant: str = "2023") -> Config:
    config = Config()
    config.data.dataset = "amazon_reviews"
    config.data.variant = variant or "2023"
    config.data.min_item_events = 5
    config.data.min_user_events = 5
    config.data.core = True
    config.layout.mode = "full"
    config.layout.segment_size = 50
    config.layout.max_segments = 1
    config.model.layers = 2
    config.model.heads = 2
    config.train.batch_size = 128
    return config
