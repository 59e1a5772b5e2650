"""What the parameters of a run are: which are trained, which decay, which have a row per item.

Paths are those of `jaxrec.runtime.leaves`, such as `compressor/encoder/layers/out/kernel`.
"""

import re
from collections.abc import Callable

from jaxrec.config import Config
from jaxrec.items import table
from jaxrec.items.table import has_item_rows as has_item_rows
from jaxrec.model.network import COMPRESSOR
from jaxrec.nn.item_tower import TOWER
from jaxrec.nn.llama import ADAPTERS

KERNEL = "kernel"  # flax's name of a matrix
ENCODER = f"{COMPRESSOR}/encoder"  # path of the encoder's group
SCALE = "logit_scale"  # logarithm of the learned factor of cosine logits
POSITIONS = f"{COMPRESSOR}/positions"  # a row for each position of a segment
DISTANCES = "/bias/distance"  # end of the path of a table with a row for each distance
OF_TOKENS = (f"{COMPRESSOR}/tokens", f"{COMPRESSOR}/pooled/")
BIASES_OF_TOKENS = ("/bias/age", "/bias/parts")


def is_of_tokens(path: str) -> bool:
    """Whether the parameter belongs to compressed tokens: full history has none of these."""
    return path.startswith(OF_TOKENS) or path.endswith(BIASES_OF_TOKENS)


def is_decayed(path: str) -> bool:
    """Whether weight decay pulls the parameter to zero: matrices and tables of vectors.

    Biases, norm scales, relative attention biases, positions and compressed tokens are left alone.
    """
    leaf = path.rpartition("/")[2]
    return leaf == KERNEL or (has_item_rows(path) and leaf != table.BIAS)


def is_trained(config: Config) -> Callable[[str], bool]:
    """Whether training moves the parameter of a path.

    Left alone: what `train.frozen` names, an item table that holds vectors of texts, and
    whatever adapters adapt.
    """
    model = config.model
    patterns = [re.compile(pattern) for pattern in config.train.frozen]
    adapted_encoder = model.backbone == "llama" and model.llama.lora_rank > 0

    def trained(path: str) -> bool:
        parts = path.split("/")
        if any(pattern.search(path) for pattern in patterns):
            return False
        if model.texts.model and parts[0] == table.ITEM:
            return False
        if model.texts.train == "lora" and parts[:2] == [TOWER, "decoder"]:
            return parts[-1] in ADAPTERS
        if adapted_encoder and path.startswith(f"{ENCODER}/"):
            return parts[-1] != KERNEL
        return True

    return trained
