"""Llama over item ids on The Complete Journey (`model.backbone=llama`), compressed.

As `completejourney_hstu.py`, with a Llama decoder as the encoder: the ID model that HLLM is
compared with. Argument: `compressed` (default), `full` or `recent`. Command:

    python train.py --config=configs/llama_id_completejourney.py --workdir=runs/cj_llama_id
"""

from configs import completejourney_hstu
from jaxrec.config import Config


def get_config(mode: str = "compressed") -> Config:
    config = completejourney_hstu.get_config(mode)
    config.model.backbone = "llama"
    config.model.llama.kv_heads = 1
    config.model.llama.time_bias = True
    return config
