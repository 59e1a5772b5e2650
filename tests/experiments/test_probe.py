"""The planted signal: which targets count, and how far back they lie."""

from types import SimpleNamespace

import numpy as np
import pytest

from jaxrec.evaluation.ranks import Ranks
from jaxrec.experiments import measures, probe
from jaxrec.experiments.runs import Lab
from tests.experiments import tiny


def test_buckets():
    assert [label for *_, label in probe.buckets((10, 20))] == [
        "below 10",
        "10 to 19",
        "20 and more",
    ]
    assert [low for low, *_ in probe.buckets((10, 20))] == [0, 10, 20]


def test_distance_is_to_the_last_time_the_item_was_seen():
    histories = {3: np.asarray([5, 6, 5, 7, 5]), 8: np.asarray([6, 5, 6, 6])}
    returning = {3: np.asarray([0, 0, 0, 0, 1], bool), 8: np.asarray([0, 0, 1, 0], bool)}
    session = SimpleNamespace(history=histories.__getitem__, returning=returning.__getitem__)
    user, position = np.asarray([3, 3, 8, 8]), np.asarray([3, 4, 2, 3])
    item = np.asarray([histories[u][p] for u, p in zip(user, position, strict=True)])
    ranks = Ranks(user, position, item, np.zeros(4, int), None)
    assert measures.distance_of_returns(session, ranks).tolist() == [0, 2, 2, 0]


def test_rows_of_a_run(tmp_path):
    lab = Lab(tiny.config(seeds=(0,), users=0, min_events=1000), tmp_path, lambda line: None)
    experiment = probe.probe(lab)
    assert len(experiment.cells) == 3 * (1 + 3)
    alone = [cell for cell in experiment.cells if cell.name.startswith("recent window alone,")]
    rows = [cell.make() for cell in alone]
    assert [row["distance"] for row in rows] == ["below 14", "14 to 17", "18 and more"]
    assert all(row["chance"] == pytest.approx(10 / 29) for row in rows)
    # planted returns lie at least `gap` = 12 events back, beyond the window of six
    assert sum(row["targets"] for row in rows) > 0
    for row in rows:
        assert ("recall@10" in row) == (row["targets"] > 0)
