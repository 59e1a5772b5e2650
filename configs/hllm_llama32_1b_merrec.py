"""HLLM after the paper over products of MerRec: Llama 3.2 1B reads products, another one users.

As `hllm_llama32_1b_ebnerd.py`, with the shapes of the paper's MerRec experiments: users with 1,024
events or more, 1,024 events compressed with 4 tokens a segment and up to 256 recent ones, texts of
name, brand and categories. Data: as `merrec.py`. Argument: `compressed` (default), `full` or
`recent`. Command:

    python train.py --config=configs/hllm_llama32_1b_merrec.py --workdir=runs/merrec_hllm \
        --config.data.path=merrec --config.model.texts.model=Llama-3.2-1B \
        --config.model.texts.user_model=Llama-3.2-1B
"""

from configs import hllm_llama32_1b_ebnerd
from jaxrec.config import Config


def get_config(mode: str = "compressed") -> Config:
    config = Config()
    config.data.dataset = "merrec"
    config.data.repeats = "consecutive"
    config.data.min_item_events = 20
    config.data.min_user_events = 1024
    config.layout.mode = mode or "compressed"
    config.layout.segment_size = 256
    config.layout.tokens = 4
    config.layout.max_segments = 4
    hllm_llama32_1b_ebnerd.hllm(config, steps=20_000)
    config.model.texts.fields = ("name", "brand_name", "c0_name", "c1_name", "c2_name")
    return config
