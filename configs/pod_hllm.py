"""HLLM with a user tower of the size of Llama 3.2 1B over cached item vectors, for a TPU pod slice.

Data: your own interactions and items with texts, as in `table.py`; argument: the file of events.
Layout: 4 x (256 items + 8 tokens) + a recent window of up to 256. Item vectors (2,048 numbers per
item, made once by the item tower: `docs/hllm.md`) are frozen and split over `mesh.model` = 16
chips; the user tower and its AdamW state are split over `mesh.fsdp` = 16. Hardware: v5e:16x16 (256
chips), bfloat16. Nobody has trained it here: what is known is what the compiler for the chip says
(`results/aot_hllm_v5e-16x16.json`, made by

    python -m jaxrec.benchmark.aot --topology=v5e:16x16 --items=4194303 \
        --config=configs/pod_hllm.py --output=results/aot_hllm_v5e-16x16.json

: 10.7 of 16 GiB per chip; `aot_hllm_v5e-4x4.json` is a slice of 16 chips, 13.1 GiB). Command, on
every host of the slice:

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
    config.model.remat = True
    config.model.texts.model = "Llama-3.2-1B"
    config.train.frozen = ("^item_(embedding|mean|scale)",)
    config.loss.kind = "sampled_softmax"
    config.loss.similarity = "cosine"
    config.loss.negatives = 4096
    config.loss.sampling = "uniform"
    config.train.batch_size = 256
    config.train.learning_rate = 1e-4
    config.train.schedule = "cosine"
    config.eval.batch_size = 256
    config.mesh.fsdp = 16
    config.mesh.model = 16
    return config
