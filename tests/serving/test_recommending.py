"""Which items are recommended: candidates, exclusions and seen items."""

import numpy as np
import pytest

from tests.serving import standin
from tests.serving.standin import ITEMS, ORIGIN

RAW = np.arange(ITEMS) * 10 + 1000


def test_k_beyond_the_catalog_and_exclusions_that_leave_less(rec, store):
    items, times = standin.history(6, 9)
    rec.append(store, [1] * 9, items, times)
    for user in (1, 99):
        recommended, scores = rec.recommend(store, [user], k=ITEMS + 5)
        assert recommended.shape == scores.shape == (1, ITEMS + 5)
        assert sorted(recommended[0, :ITEMS]) == RAW.tolist()
        assert (recommended[0, ITEMS:] == -1).all()
        assert np.isneginf(scores[0, ITEMS:]).all()
        recommended, scores = rec.recommend(store, [user], k=3, exclude=[RAW[2:].tolist()])
        assert sorted(recommended[0, :2]) == RAW[:2].tolist()
        assert recommended[0, 2] == -1
        assert np.isneginf(scores[0, 2])
        recommended, _ = rec.recommend(store, [user], k=3, candidates=[1000, 999], exclude=[1000])
        assert recommended.tolist() == [[-1, -1, -1]]


def test_candidates_and_exclusions_per_user(rec, store):
    for user in (1, 2):
        items, times = standin.history(user, 9)
        rec.append(store, [user] * 9, items, times)
    all_items, all_scores = rec.recommend(store, [1, 2, 3], k=ITEMS)
    chosen = [[1000, 1200, 1100], [1290, 1000], [1050]]
    recommended, scores = rec.recommend(store, [1, 2, 3], k=3, candidates=chosen)
    for row, line in enumerate(chosen):
        keep = np.isin(all_items[row], line)
        assert recommended[row, : len(line)].tolist() == all_items[row][keep].tolist()
        np.testing.assert_allclose(scores[row, : len(line)], all_scores[row][keep], rtol=1e-5)
    out = [all_items[0][:2].tolist(), [], all_items[2][:1].tolist()]
    recommended, _ = rec.recommend(store, [1, 2, 3], k=2, exclude=out)
    for row, skipped in enumerate([2, 0, 1]):
        assert recommended[row].tolist() == all_items[row][skipped : skipped + 2].tolist()


def test_seen_items_are_left_out_as_far_as_the_store_remembers(rec, store, tmp_path):
    with pytest.raises(ValueError, match="keep_seen=N"):
        rec.recommend(store, [1], exclude_seen=True)
    remembering = rec.create_store(tmp_path / "seen", keep_seen=4, num_shards=1)
    items = RAW[[3, 1, 4, 1, 5, 9, 2]]  # newest distinct: 2 9 5 1
    for item, time in zip(items, ORIGIN + np.arange(7), strict=True):
        rec.append(remembering, [1], [item], [time])
    recommended, _ = rec.recommend(remembering, [1], k=ITEMS, exclude_seen=True)
    recommended_items = set(recommended[0].tolist()) - {-1}
    assert set(RAW.tolist()) - recommended_items == set(RAW[[2, 9, 5, 1]].tolist())
    recommended, _ = rec.recommend(
        remembering, [1], k=ITEMS, exclude_seen=True, exclude=[int(RAW[0])]
    )
    assert RAW[0] not in recommended[0]
    # an event left out of the state as late was seen all the same
    rec.append(remembering, [1], [RAW[7]], [ORIGIN - 5])
    recommended, _ = rec.recommend(remembering, [1], k=ITEMS, exclude_seen=True)
    assert RAW[7] not in recommended[0]
