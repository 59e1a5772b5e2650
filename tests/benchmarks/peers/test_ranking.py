"""Ranks and metrics in NumPy against those of the package."""

import numpy as np
import pytest

from benchmarks.peers import exchange, ranking
from jaxrec.evaluation import report
from jaxrec.evaluation.ranks import Ranks
from jaxrec.ranking import ItemIndex, rank_of_targets
from jaxrec.types import ItemVectors, Queries
from tests.benchmarks.peers import standin


def test_ranks_are_those_of_the_package():
    events = standin.events()
    wanted = exchange.targets(events, "test")
    rng = np.random.default_rng(0)
    # small integers: many ties, and the products are exact
    x = rng.integers(-2, 3, (len(wanted.user), 3)).astype(np.float32)
    table = rng.integers(-2, 3, (events.num_items + 1, 3)).astype(np.float32)
    found = ranking.ranks(lambda some: x[some] @ table.T, events, wanted, block=4)
    queries, index = Queries(x), ItemIndex.of(ItemVectors(table))
    plain = rank_of_targets(queries, index, wanted.item)
    assert found["rank"].tolist() == np.asarray(plain).tolist()
    seen = np.zeros((len(wanted.user), 12), np.int32)
    for row, (user, position, _) in enumerate(zip(*wanted, strict=True)):
        items = np.unique(events.history(user)[:position])
        seen[row, : len(items)] = items
    filtered = rank_of_targets(queries, index, wanted.item, exclude=seen)
    assert found["rank_filtered"].tolist() == np.asarray(filtered).tolist()
    assert (found["rank_filtered"] < found["rank"]).any()


@pytest.mark.parametrize("place", [1, 2])
def test_scores_that_are_no_numbers_count_against_the_model(place):
    scores = np.asarray([[9.0, 3.0, 2.0, 1.0]])
    scores[0, place] = np.nan
    everyone, _ = ranking.rank_block(scores, np.asarray([1]), [np.zeros(0, np.int64)])
    assert everyone.tolist() == [2 if place == 1 else 1]


def test_items_that_a_model_does_not_know_rank_last():
    scores = np.asarray([[0.0, 5.0, -np.inf, -np.inf, 1.0]])
    everyone, unseen = ranking.rank_block(scores, np.asarray([2]), [np.asarray([1])])
    assert everyone.tolist() == [3]
    assert unseen.tolist() == [2]


def test_quality_is_that_of_the_package():
    events = standin.events(users=20, items=40)
    wanted = exchange.targets(events, "test")
    rank = np.random.default_rng(1).integers(0, 40, len(wanted.user))
    found = ranking.quality(rank, wanted.user)
    ranks = Ranks(*wanted, rank, None)
    for metric in ("recall", "ndcg"):
        expected = report.per_user(ranks, metric, 10)[1].mean()
        assert found[f"{metric}@10"] == pytest.approx(expected, rel=1e-6)
