"""HSTU of 16 layers over 2,048 + 256 events and 10⁸ items, for a TPU pod slice.

The item table (10⁸ x 64, float32, 25.6 GB) is split over `mesh.model` = 16 chips, with one number
per row for row-wise Adagrad. A step reads and writes only the rows that it touches.
Data: your own interactions, as in `table.py`.
Layout: 8 x (256 items + 8 tokens) + a recent window of up to 256.
Argument: the file of events.
Hardware and cost: v5e:16x16 (256 chips), bfloat16. Training needs 3.7 of 16 GiB per chip, by the
plan of the chip's compiler (`results/aot_v5e-16x16.json`), which is made by

    python -m jaxrec.benchmark.aot --topology=v5e:16x16 --config=configs/pod_hstu.py

Quality: not measured, it has never been trained.
Command, on every host of the slice:

    python train.py --config=configs/pod_hstu.py:events.parquet --workdir=/shared/runs/pod
"""

from jaxrec.config import Config


def get_config(path: str = "events.parquet") -> Config:
    config = Config()
    config.data.dataset = "table"
    config.data.path = path
    config.layout.segment_size = 256
    config.layout.tokens = 8
    config.layout.max_segments = 8
    config.layout.recent_min = 1
    config.model.backbone = "hstu"
    config.model.width = 512
    config.model.item_width = 64
    config.model.layers = 16
    config.model.heads = 8
    config.model.dtype = "bfloat16"
    config.model.attention = "fused"
    config.model.remat = True
    config.loss.kind = "sampled_softmax"
    config.loss.similarity = "cosine"
    config.loss.temperature = 0.05
    config.loss.negatives = 4096
    config.loss.sampling = "uniform"  # a table of popularity would be kept whole on every chip
    config.train.batch_size = 512
    config.train.table_update = "adagrad"
    config.train.compilation_cache = ""
    config.eval.batch_size = 1024  # users share a pass over the table
    config.mesh.model = 16
    return config
