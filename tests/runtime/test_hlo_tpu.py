"""Counts of programs of the TPU's own compiler, which writes no trip counts."""

import json

import pytest

from tests import libtpu
from tests.runtime.tpu_counts import DECLARED, ROWS, TURNS, WIDTH

pytestmark = libtpu.needed


@pytest.fixture(scope="module")
def counts():
    return json.loads(libtpu.run("tests.runtime.tpu_counts").splitlines()[-1])


def test_a_loop_costs_what_it_costs_unrolled(counts):
    loop, straight = counts["looped"], counts["unrolled"]
    assert loop["assumed"] == straight["assumed"] == []
    assert loop["flops"] == straight["flops"] == TURNS * 4 * ROWS * WIDTH**2
    assert loop["bytes"] == pytest.approx(straight["bytes"], rel=0.05)
    # each of two products a turn reads and writes the activations, 2 bytes a number
    assert straight["bytes"] == pytest.approx(TURNS * 2 * 2 * ROWS * WIDTH * 2, rel=0.05)


def test_a_kernel_counts_what_it_declares(counts):
    found = counts["kernels"]
    assert found["assumed"] == []
    assert found["flops"] == TURNS * DECLARED["flops"]
    assert found["bytes"] == pytest.approx(TURNS * DECLARED["bytes_accessed"], rel=0.001)
    assert found["heaviest"]["operation"].endswith("pallas_call")
    assert found["heaviest"]["times"] == TURNS


def test_chips_that_the_compiler_knows(counts):
    assert counts["devices"] == {
        "v5e:4x4": ["v5e", 16],
        "v5p:2x2x1": ["v5p", 4],
        "v6e:4x4": ["v6e", 16],
    }
