"""SASRec blocks against NumPy, from item ids to outputs."""

import pytest

from jaxrec.config import ModelConfig, SASRecConfig
from jaxrec.layout import SegmentLayout
from tests.nn import parity


def config(block, **sasrec):
    sasrec = SASRecConfig(block=block, **sasrec)
    return ModelConfig(backbone="sasrec", width=6, heads=2, layers=2, sasrec=sasrec)


@pytest.mark.parametrize("block", ["classic", "modern"])
def test_stream(block):
    parity.check(config(block), parity.STREAM)


@pytest.mark.parametrize("block", ["classic", "modern"])
def test_full_history(block):
    """The published model: one causal segment, no bias at all."""
    layout = SegmentLayout.full(6)
    parity.check(config(block), layout)


@pytest.mark.parametrize("layout", [parity.STREAM, parity.OVERFLOW])
def test_position_bias(layout):
    parity.check(config("modern", position_bias=True), layout)


def test_time_bias_and_width_of_the_feed_forward_network():
    parity.check(config("modern", time_bias=True, ffn_width=5), parity.OVERFLOW)


def test_absolute_positions():
    layout = parity.ABSOLUTE
    rows = parity.absolute(layout, parity.histories(layout)[1])
    parity.check(config("classic", ffn_width=10), layout, absolute=rows)
