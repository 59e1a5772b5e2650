import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrec import ranking
from jaxrec.ranking import ItemIndex
from jaxrec.types import HistoryItems, ItemVectors, Queries
from tests.reference import metrics as reference


def problem(seed, queries, items, width=4, excluded=0):
    """Integer vectors: scores are exact, and ties are frequent."""
    rng = np.random.default_rng(seed)
    x = rng.integers(-2, 3, (queries, width)).astype(np.float32)
    table = rng.integers(-2, 3, (items + 1, width)).astype(np.float32)
    table[0] = 1e6  # a padding row that would win if it were a candidate
    targets = rng.integers(1, items + 1, queries).astype(np.int32)
    exclude = rng.integers(0, items + 1, (queries, excluded)).astype(np.int32)
    return x, table, targets, exclude


def index_of(table):
    return ItemIndex.of(ItemVectors(table))


SHAPES = (
    st.integers(0, 999),
    st.integers(1, 9),
    st.integers(1, 23),
    st.sampled_from([1, 4, 7, 100]),
    st.sampled_from([1, 4, 100]),
    st.sampled_from([0, 1, 12]),
)


@settings(deadline=None, max_examples=20)
@given(*SHAPES)
def test_ranks_equal_brute_force(seed, queries, items, chunk, block, excluded):
    x, table, targets, exclude = problem(seed, queries, items, excluded=excluded)
    exclude[: len(exclude) // 2, :1] = targets[: len(exclude) // 2, None]  # never excluded
    expected = [reference.rank(x[row], table, targets[row], exclude[row]) for row in range(queries)]
    seen = exclude if excluded else None
    actual = ranking.rank_of_targets(
        Queries(x), index_of(table), targets, chunk=chunk, block=block, exclude=seen
    )
    assert actual.dtype == jnp.int32
    np.testing.assert_array_equal(actual, expected)


@settings(deadline=None, max_examples=20)
@given(*SHAPES, st.integers(1, 23))
def test_lists_equal_brute_force(seed, queries, items, chunk, block, excluded, k):
    k = min(k, items)
    x, table, _, exclude = problem(seed, queries, items, excluded=excluded)
    scores, ids = ranking.top_k(
        Queries(x),
        index_of(table),
        k,
        chunk=chunk,
        block=block,
        exclude=exclude if excluded else None,
    )
    for row in range(queries):
        expected = reference.top(x[row], table, k, exclude[row])
        np.testing.assert_array_equal(scores[row], expected[0])
        np.testing.assert_array_equal(ids[row], expected[1])


@pytest.mark.parametrize("chunk", [5, 64])
def test_history_items_add_to_scores(chunk):
    """Ranks and lists are those of the dense scores, which follow the definition."""
    x, table, targets, exclude = problem(7, 6, 23, excluded=2)
    rng = np.random.default_rng(7)
    gates = rng.integers(-2, 3, (6, 2)).astype(np.float32)
    ids = np.stack([rng.permutation(24)[:8] for _ in range(6)]).astype(np.int32)
    features = rng.integers(0, 4, (6, 8, 2)).astype(np.float32)
    queries, history = Queries(x, gates), HistoryItems(ids, features)
    index = index_of(table)
    expected = x @ table.T
    for row in range(6):
        for place, item in enumerate(ids[row]):
            expected[row, item] += gates[row] @ features[row, place] if item else 0
    scores = np.asarray(ranking.scores(queries, index, history))
    np.testing.assert_array_equal(scores[:, 1:], expected[:, 1:])
    assert np.abs(expected - x @ table.T).max() > 1
    # a diagonal of scores as vectors: the reference sees the sum as a plain dot product
    eye = np.eye(6)
    ranks = [reference.rank(eye[r], expected.T, targets[r], exclude[r]) for r in range(6)]
    options = {"exclude": exclude, "history": history, "chunk": chunk, "block": 4}
    actual = ranking.rank_of_targets(queries, index, targets, **options)
    assert np.asarray(actual).tolist() == ranks
    best, best_ids = ranking.top_k(queries, index, 5, **options)
    for row in range(6):
        want = reference.top(eye[row], expected.T, 5, exclude[row])
        assert (best[row].tolist(), best_ids[row].tolist()) == (want[0], want[1])
    with pytest.raises(ValueError, match="features of history items"):
        ranking.scores(Queries(x), index, history)


@pytest.mark.parametrize("chunk", [5, 64, 1000])
def test_equal_item_vectors_tie_exactly(chunk):
    """A collapsed model, all items alike, ranks last whatever the rounding."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(13, 37)).astype(np.float32)
    table = np.tile(rng.normal(size=(1, 37)).astype(np.float32), (102, 1))
    targets = rng.integers(1, 102, 13).astype(np.int32)
    ranks = ranking.rank_of_targets(Queries(x), index_of(table), targets, chunk=chunk, block=6)
    np.testing.assert_array_equal(ranks, 100)


def test_not_a_number_ranks_last():
    x, table, targets, _ = problem(1, 4, 9)
    x[0] = np.nan
    table[targets[1]] = np.nan
    ranks = np.asarray(ranking.rank_of_targets(Queries(x), index_of(table), targets, chunk=4))
    assert ranks[0] == ranks[1] == 8
    _, ids = ranking.top_k(Queries(x), index_of(table), 9, chunk=4)
    assert not np.any(np.asarray(ids)[0])
    assert targets[1] not in np.asarray(ids)[1]
    assert np.sum(np.asarray(ids)[1] == 0) >= 1


def test_errors_name_the_argument():
    x, table, targets, _ = problem(0, 3, 5)
    queries, index = Queries(x), index_of(table)
    with pytest.raises(ValueError, match="k=6: the catalog allows 1 to 5"):
        ranking.top_k(queries, index, 6)
    with pytest.raises(ValueError, match="k=0"):
        ranking.top_k(queries, index, 0)
    with pytest.raises(ValueError, match="chunk=0"):
        ranking.rank_of_targets(queries, index, targets, chunk=0)
    with pytest.raises(ValueError, match=r"targets has shape \(2,\)"):
        ranking.rank_of_targets(queries, index, targets[:2])
    with pytest.raises(ValueError, match=r"exclude has shape \(2, 1\)"):
        ranking.top_k(queries, index, 1, exclude=np.zeros((2, 1), np.int32))
    with pytest.raises(ValueError, match=r"\[P, D\]"):
        ranking.top_k(Queries(x[:, :2]), index, 1)
    with pytest.raises(ValueError, match="an item"):
        ranking.top_k(queries, index_of(table[:1]), 1)


def test_temporary_memory_is_bounded_by_block_and_chunk():
    def temporary(queries, items):
        of = jax.ShapeDtypeStruct
        index = ItemIndex(ItemVectors(of((items + 1, 4), jnp.float32)), None, items)
        lowered = ranking.rank_of_targets.lower(
            Queries(of((queries, 4), jnp.float32)),
            index,
            of((queries,), jnp.int32),
            chunk=1024,
            block=256,
        )
        return lowered.compile().memory_analysis().temp_size_in_bytes

    small = temporary(1_000, 10_000)
    assert temporary(10_000, 200_000) < small + 10_000 * 64  # a copy of the queries
