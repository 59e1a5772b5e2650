"""Llama over film ids of MovieLens latest-small: the model that HLLM is compared with.

`hllm_ml_latest_small.py` without texts; data and layout are described there.
Argument: `compressed` (default), `full` or `recent`.
Hardware: CPU; the cost was not recorded.
Quality, with a split by time instead: NDCG@10 0.044 [0.036, 0.053] (`results/hllm.json`).
Command:

    JAXREC_ML_LATEST_SMALL=FOLDER python train.py --config=configs/llama_id_ml_latest_small.py \
        --workdir=runs/ml_llama_id
"""

from configs import hllm_ml_latest_small
from jaxrec.config import Config, recipe_argument

ARGUMENTS = hllm_ml_latest_small.MODES


def get_config(mode: str = "compressed") -> Config:
    return hllm_ml_latest_small.get_config(f"{recipe_argument(mode, ARGUMENTS)}_id")
