"""HLLM as in the paper, on MerRec: one Llama 3.2 1B encodes products, another one users.

Source, weights, hardware and cost: as `hllm_llama32_1b_ebnerd.py`, with the shapes of the
paper's MerRec experiments: users with 1,024 events or more, texts of name, brand and categories.
Data: as `merrec.py`.
Layout: 4 x (256 items + 4 tokens) + a recent window of up to 256.
Argument: `compressed` (default), `full` or `recent`.
Quality: not measured, it has never been trained.
Command:

    python train.py --config=configs/hllm_llama32_1b_merrec.py --workdir=runs/merrec_hllm \
        --config.data.path=merrec --config.model.texts.model=Llama-3.2-1B \
        --config.model.texts.user_model=Llama-3.2-1B
"""

from configs import hllm_llama32_1b_ebnerd
from jaxrec.config import Config, recipe_argument

ARGUMENTS = hllm_llama32_1b_ebnerd.ARGUMENTS


def get_config(mode: str = "compressed") -> Config:
    config = Config()
    config.data.dataset = "merrec"
    config.data.repeats = "consecutive"
    config.data.min_item_events = 20
    config.data.min_user_events = 1024
    config.layout.mode = recipe_argument(mode, ARGUMENTS)
    config.layout.segment_size = 256
    config.layout.tokens = 4
    config.layout.max_segments = 4
    hllm_llama32_1b_ebnerd.hllm(config, steps=20_000)
    config.model.texts.fields = ("name", "brand_name", "c0_name", "c1_name", "c2_name")
    return config
