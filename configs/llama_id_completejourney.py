"""Llama over item ids on The Complete Journey, compressed: the model that HLLM is compared with.

Data, layout: as `completejourney_hstu.py`.
Argument: `compressed` (default), `full` or `recent`.
Hardware: CPU; the cost was not recorded.
Quality, 600 steps and a split by time: NDCG@10 0.079 [0.075, 0.082]
(`results/hllm_completejourney.json`; commands in docs/hllm.md).
Command:

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
