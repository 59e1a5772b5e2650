"""The benchmark of texts: both ways encode the same, and what packing a catalog counts."""

import argparse

import jax
import numpy as np

from benchmarks import item_texts
from jaxrec.config import LlamaConfig, ModelConfig
from jaxrec.data import item_tokens
from jaxrec.nn.item_tower import ItemTower
from jaxrec.nn.text_model import TextModel


def test_packed_and_padded_encode_the_same():
    config = ModelConfig(backbone="llama", width=4, heads=1, layers=1, llama=LlamaConfig())
    tower = ItemTower(TextModel(config, 9), "mean")
    lengths = np.asarray([2, 7, 3, 1, 2])
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    words = item_tokens.TokenizedTexts(np.arange(15, dtype=np.int32) % 9, offsets, 0)
    args = argparse.Namespace(rows=2, row_length=8, padded_rows=2, repeats=1)
    row = item_texts.measure(tower, tower.init(jax.random.key(0)), words, args)
    assert row["relative_difference"] < 1e-4
    assert (row["words"], row["longest"]) == (15, 7)
    assert row["ways"]["packed"]["positions"] == 16
    assert row["ways"]["padded"]["positions"] == 6 * 7  # the last batch has an empty row
    assert row["ways"]["packed"]["computed_per_word"] == 16 / 15


def test_positions_of_a_whole_catalog():
    lengths = np.asarray([3, 5, 2, 6, 8])
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    words = item_tokens.TokenizedTexts(np.zeros(24, np.int32), offsets, 0)
    counts = item_texts.packing(words, rows=4, row_length=8)
    assert (counts["texts"], counts["words"]) == (5, 24)
    assert counts["packed_per_word"] == 1.0  # 8, 6 + 2, 5 + 3
    assert counts["padded_per_word"] == 5 * 8 / 24
