"""HLLM with a user tower of the size of Llama 3.2 1B, for a TPU pod slice.

Item vectors (2,048 numbers per item) are made once by the item tower (docs/hllm.md), frozen, and
split over `mesh.model` = 16 chips. The user tower and its AdamW state are split over
`mesh.fsdp` = 16.
Data: your own interactions, and items with texts, as in `table.py`.
Layout: 4 x (256 items + 8 tokens) + a recent window of up to 256.
Argument: the file of events.
Hardware and cost: v5e:16x16 (256 chips), bfloat16. Training needs 3.9 of 16 GiB per chip, by the
plan of the chip's compiler (`results/aot_hllm_v5e-16x16.json`). On v5e:4x4 (16 chips) it is 13.0
GiB (`results/aot_hllm_v5e-4x4.json`). The plan is made by

    python -m jaxrec.benchmark.aot --topology=v5e:16x16 --items=4194303 \
        --config=configs/pod_hllm.py --output=results/aot_hllm_v5e-16x16.json

Quality: not measured, it has never been trained.
Command, on every host of the slice:

    python train.py --config=configs/pod_hllm.py:events.parquet --workdir=/shared/runs/pod_hllm \
        --config.data.items_path=items.parquet --config.model.texts.model=Llama-3.2-1B \
        --config.model.texts.user_model=Llama-3.2-1B
"""

from jaxrec.config import Config


def get_config(path: str = "events.parquet") -> Config:
    config = Config()
    config.data.dataset = "table"
    config.data.path = path
    config.layout.segment_size = 256
    config.layout.tokens = 8
    config.layout.max_segments = 4
    config.layout.recent_min = 1
    config.model.backbone = "llama"
    config.model.width = config.model.item_width = 2048
    config.model.layers = 16
    config.model.heads = 32
    config.model.llama.kv_heads = 8
    config.model.llama.head_width = 64
    config.model.llama.ffn_width = 8192
    config.model.llama.rope_theta = 500_000.0
    config.model.llama.rope_scaling = "llama3"
    config.model.llama.rope_factor = 32.0
    config.model.dtype = "bfloat16"
    config.model.attention = "fused"
    config.model.remat = True
    config.model.texts.model = "Llama-3.2-1B"
    config.loss.kind = "sampled_softmax"
    config.loss.similarity = "cosine"
    config.loss.negatives = 4096
    config.loss.sampling = "uniform"
    config.train.batch_size = 256
    config.train.learning_rate = 1e-4
    config.train.schedule = "cosine"
    config.eval.batch_size = 1024  # users share a pass over the weights and the table
    config.mesh.fsdp = 16
    config.mesh.model = 16
    return config
