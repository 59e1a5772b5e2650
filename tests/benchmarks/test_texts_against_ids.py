"""Figures of warm and cold targets."""

import json

import numpy as np
import pytest

from benchmarks import texts_against_ids
from jaxrec.config import Config
from jaxrec.evaluation.ranks import Ranks


def test_warm_and_cold_targets():
    user = np.array([0, 0, 0, 1])
    ranks = Ranks(user, np.arange(4), np.array([1, 1, 2, 2]), np.array([0, 2, 9, 10]), None)
    figures = texts_against_ids.split(ranks, np.array([0, 5, 0]))
    assert [figures[part]["targets"] for part in ("all", "warm", "cold")] == [4, 2, 2]
    assert figures["warm"]["recall@10"]["mean"] == 1.0
    assert figures["warm"]["mrr"]["mean"] == pytest.approx((1 + 1 / 3) / 2)
    assert figures["warm"]["ndcg@10"]["mean"] == pytest.approx((1 + 1 / np.log2(4)) / 2)
    # two users with a cold target each: rank 9 is the tenth place, rank 10 behind it
    assert figures["cold"]["recall@10"]["mean"] == 0.5
    assert figures["cold"]["users"] == 2
    # users count equally: user 0 has three hits of three, user 1 none
    assert figures["all"]["recall@10"]["mean"] == 0.5


def test_a_run_without_cold_targets():
    ranks = Ranks(np.zeros(1, int), np.zeros(1, int), np.ones(1, int), np.zeros(1, int), None)
    assert texts_against_ids.split(ranks, np.array([0, 5]))["cold"] == {"targets": 0}


def test_rows_are_compared_over_the_same_users():
    user, item = np.array([0, 0, 1, 2]), np.ones(4, int)
    rows = {
        name: Ranks(user, np.arange(4), item, np.array(rank), None)
        for name, rank in (("a", [0, 20, 0, 1]), ("b", [0, 20, 20, 0]), ("same", [0, 20, 0, 1]))
    }
    figures = texts_against_ids.compared(rows, Config())
    assert json.loads(json.dumps(figures)) == figures
    assert list(figures) == ["a / b", "a / same"]
    assert figures["a / b"]["recall@10"]["mean"] == pytest.approx(2.5 / 1.5)
    assert figures["a / same"]["ndcg@10"] == {"mean": 1.0, "low": 1.0, "high": 1.0}
