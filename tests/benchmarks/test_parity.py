"""Every way that the decoder reads texts gives what it gives for a text alone."""

import jax
import numpy as np
import pytest

from benchmarks import parity
from jaxrec.config import LlamaConfig, ModelConfig
from jaxrec.nn.text_model import TextModel


def test_all_ways_agree_and_a_difference_is_seen():
    config = ModelConfig(backbone="llama", width=8, heads=2, layers=1, llama=LlamaConfig())
    model = TextModel(config, 9)
    params = model.init(jax.random.key(0))
    texts = [np.asarray(words, np.int32) for words in ([1, 2, 3, 4], [5], [6, 7])]
    truth = parity.alone(model, params, texts)
    for name, way in parity.WAYS.items():
        row = parity.compare(way(model, params, texts), truth)
        assert row["positions"] == 7
        assert row["relative"] < 1e-5, name
    truth[2] = truth[2] + 0.5 * (np.arange(8) == 3)
    row = parity.compare(parity.alone(model, params, texts), truth)
    assert row["largest_difference"] == pytest.approx(0.5, rel=1e-5)
