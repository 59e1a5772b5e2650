"""A little model whose items are vectors of texts."""

import numpy as np

from jaxrec.config import LlamaConfig, LossConfig, ModelConfig, TextsConfig
from jaxrec.layout import SegmentLayout
from jaxrec.model import recommender
from jaxrec.types import Batch
from tests.nn import parity

LAYOUT = SegmentLayout.stream(3, 2, 2)
USER = LlamaConfig(kv_heads=1, ffn_width=12)
CONFIG = ModelConfig(
    backbone="llama",
    width=8,
    item_width=6,
    heads=2,
    layers=2,
    dropout=0.0,
    embed_dropout=0.0,
    llama=USER,
    texts=TextsConfig(model="some/folder", prompt="", fields=("title",)),
)
LOSS = LossConfig(similarity="cosine", temperature=0.1)
RNG = np.random.default_rng(0)
VECTORS = (3 + 2 * RNG.standard_normal((parity.ITEMS + 1, 6))).astype(np.float32)
VECTORS[[0, 4]] = 0  # padding, and an item without text


def build(config=CONFIG):
    return recommender.build(config, LOSS, LAYOUT, parity.ITEMS)


def batch_of():
    items, lengths, times = parity.histories(LAYOUT)
    items = np.concatenate([items, items[:, :1]], axis=1)
    zeros = np.zeros(len(items), np.int32)
    return Batch(items, times, lengths, np.ones(items.shape, np.float32), zeros, zeros)
