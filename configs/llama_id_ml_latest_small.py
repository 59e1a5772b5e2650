"""Llama over film ids of MovieLens latest-small: the ID model that HLLM is compared with.

`hllm_ml_latest_small.py` without texts. Argument: `compressed` (default), `full` or `recent`.
Command:

    JAXREC_ML_LATEST_SMALL=FOLDER python train.py --config=configs/llama_id_ml_latest_small.py \
        --workdir=runs/ml_llama_id
"""

from configs import hllm_ml_latest_small
from jaxrec.config import Config


def get_config(mode: str = "compressed") -> Config:
    return hllm_ml_latest_small.get_config(f"{mode or 'compressed'}_id")
