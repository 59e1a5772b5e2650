"""HSTU against NumPy: the whole path from item ids to outputs (arXiv 2402.17152 eqs. 1-3)."""

import numpy as np
import pytest

from jaxrec.config import HSTUConfig, ModelConfig
from jaxrec.layout import SegmentLayout
from jaxrec.nn.hstu import layer_norm
from tests.nn import parity
from tests.reference import hstu as reference


def config(**more):
    hstu = HSTUConfig(**more.pop("hstu", {}))
    return ModelConfig(backbone="hstu", width=6, heads=2, layers=2, hstu=hstu, **more)


def test_stream_with_position_and_time_bias():
    parity.check(config(), parity.STREAM, normalizer=parity.STREAM.length)


def test_history_that_overflows():
    """The divisor is the model's constant, not the length of this forward."""
    parity.check(config(), parity.OVERFLOW, normalizer=2 * 3 + 2)


def test_absolute_positions():
    layout = parity.ABSOLUTE
    rows = parity.absolute(layout, parity.histories(layout)[1])
    parity.check(config(), layout, normalizer=layout.length, absolute=rows)


def test_full_history():
    parity.check(config(), SegmentLayout.full(7), normalizer=7)


def test_projected_items_request_time_and_own_normalizer():
    parity.check(
        config(item_width=4, request_time=True, hstu={"normalizer": 3.5}),
        parity.STREAM,
        normalizer=3.5,
    )


def test_without_bias_and_activation():
    hstu = {"position_bias": False, "time_bias": False, "activation": "none"}
    parity.check(config(hstu=hstu), parity.STREAM, normalizer=parity.STREAM.length)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e3])
def test_layer_norm(scale):
    """Without affine parameters, eps 1e-6 inside the root: small inputs are not blown up."""
    x = scale * np.random.default_rng(0).standard_normal((4, 8)).astype(np.float32)
    np.testing.assert_allclose(layer_norm(x), reference.layer_norm(x), atol=2e-6)
    np.testing.assert_array_equal(layer_norm(np.zeros((2, 3), np.float32)), np.zeros((2, 3)))
