"""Ranks and top-k against NumPy over the whole score matrix."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrec import retrieval


def make(seed, queries, items, ties):
    rng = np.random.default_rng(seed)
    draw = (lambda *s: rng.integers(-2, 3, s)) if ties else (lambda *s: rng.normal(size=s))
    x = draw(queries, 4).astype(np.float32)
    table = draw(items + 1, 4).astype(np.float32)
    targets = rng.integers(1, items + 1, queries).astype(np.int32)
    exclude = rng.integers(0, items + 1, (queries, 5)).astype(np.int32)
    return x, table, targets, exclude


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    items=st.sampled_from([3, 10, 33]),
    chunk=st.sampled_from([4, 11, 64]),
    ties=st.booleans(),
    seen=st.booleans(),
)
def test_rank_and_top_k_equal_brute_force(seed, items, chunk, ties, seen):
    x, table, targets, exclude = make(seed, 7, items, ties)
    scores = np.asarray(jnp.asarray(x) @ jnp.asarray(table).T)
    allowed = np.ones_like(scores, bool)
    allowed[:, 0] = False
    if seen:
        for row, ids in enumerate(exclude):
            allowed[row, ids] = False
    ranks = retrieval.rank_of_targets(x, table, targets, exclude if seen else None, chunk=chunk)
    for row, target in enumerate(targets):
        rivals = allowed[row].copy()
        rivals[target] = False
        assert ranks[row] == (scores[row][rivals] >= scores[row, target]).sum()
    k = min(3, items)
    best, ids = retrieval.top_k(x, table, k, exclude if seen else None, chunk=chunk)
    for row in range(len(x)):
        order = sorted(np.flatnonzero(allowed[row]), key=lambda i: (-scores[row, i], i))[:k]
        found = np.asarray(ids[row])[: len(order)]
        assert found.tolist() == order
        assert (np.asarray(ids[row])[len(order) :] == 0).all()
        assert (np.asarray(best[row])[len(order) :] == -np.inf).all()


def test_a_score_that_is_no_number_ranks_last():
    x, table, targets, _ = make(0, 3, 9, False)
    x[1] = np.nan
    ranks = retrieval.rank_of_targets(x, table, targets)
    assert ranks[1] == 8


def test_more_results_than_items_is_refused():
    x, table, _, _ = make(0, 3, 9, False)
    with pytest.raises(ValueError, match="k=10: allowed is 1 to the catalog's 9 items"):
        retrieval.top_k(x, table, 10)
