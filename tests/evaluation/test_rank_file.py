"""Ranks of an evaluation on disk."""

import numpy as np
import pytest

from jaxrec.errors import WorkdirError
from jaxrec.evaluation import rank_file
from jaxrec.evaluation.ranks import Ranks

FACTS = {"data.dataset": "table", "candidates": 50}
USERS, LAST = 200, 2


def ranks(rank, order=None):
    user = np.repeat(np.arange(USERS), LAST)
    position = np.tile(np.arange(LAST), USERS) + 7
    columns = (user, position, 1 + (user * 3 + position) % 50, np.asarray(rank))
    order = np.arange(len(user)) if order is None else order
    return Ranks(*(column[order] for column in columns), lists=None)


def random_ranks(seed):
    return np.random.default_rng(seed).integers(1, 50, USERS * LAST)


def test_rows_come_back_whatever_their_order(tmp_path):
    first, second = random_ranks(0), random_ranks(1)
    shuffled = np.random.default_rng(2).permutation(USERS * LAST)
    rows = {"compressed": ranks(first), "popularity": ranks(second, shuffled)}
    rank_file.save(tmp_path / rank_file.NAME, rows, FACTS)
    stored = rank_file.load(tmp_path)
    assert stored.facts == FACTS
    for name, rank in (("compressed", first), ("popularity", second)):
        np.testing.assert_array_equal(stored.ranks[name].rank, rank)
        np.testing.assert_array_equal(stored.ranks[name].item, ranks(rank).item)


def test_rows_of_other_targets_are_refused(tmp_path):
    other = ranks(random_ranks(1))
    rows = {"compressed": ranks(random_ranks(0)), "full": other._replace(item=other.item + 1)}
    with pytest.raises(ValueError, match="row 'full' has other targets"):
        rank_file.save(tmp_path / rank_file.NAME, rows, FACTS)
    assert not (tmp_path / rank_file.NAME).exists()


def test_a_damaged_file_is_named(tmp_path):
    rank_file.save(tmp_path / rank_file.NAME, {"full": ranks(random_ranks(0))}, FACTS)
    path = tmp_path / rank_file.NAME
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(WorkdirError, match=r"ranks\.npz: damaged: .*writes it again"):
        rank_file.load(tmp_path)
