"""Stored states from Python: what the recommender answers, in frames."""

import numpy as np
import pandas as pd
import polars as pl
import pytest

from jaxrec.errors import DataError, StoreError
from jaxrec.serving import build, rebuild
from jaxrec.state_store.places import local_path

NEW = pd.DataFrame(
    {
        "customer": [100, 5000, 100],
        "product": ["p01", "p02", "no such"],
        "when": ["2023-01-01T00:00:00Z", "2023-01-02T00:00:00Z", "2023-01-03T00:00:00Z"],
    }
)


@pytest.fixture
def states(fitted, tmp_path):
    with fitted.states(tmp_path / "states") as states:
        yield states


def test_states_recommend_as_histories_do(fitted, states):
    assert len(states) == fitted.session.prepared.num_users
    users = [105, 999, 101]
    stored, read = states.recommend(users, k=40), fitted.recommend(users, k=40)
    assert list(stored.columns) == list(read.columns)
    keys = ["customer", "product"]
    both = stored.merge(read, on=keys, suffixes=("_stored", "_read"))
    assert len(both) == len(stored) == len(read)
    spread = read["score"][read["known"]].max() - read["score"][read["known"]].min()
    np.testing.assert_allclose(both["score_stored"], both["score_read"], rtol=0, atol=1e-5 * spread)
    assert (both["known_stored"] == both["known_read"]).all()


def test_events_are_appended_once(states, capfd):
    result = states.append(NEW)
    assert (result.events, result.users, result.unknown_items) == (2, 2, 1)
    assert "1 of items that the model does not know" in capfd.readouterr().err
    again = states.append(pl.DataFrame(NEW.to_dict("list")))  # another library, the same events
    assert (again.events, again.already_applied) == (0, 2)
    rec, store = states.recommender, states.store
    items, scores = rec.recommend(store, [5000], k=3)
    frame = states.recommend([5000], k=3)
    assert frame["product"].tolist() == items[0].tolist()
    np.testing.assert_array_equal(frame["score"], scores[0])
    assert frame["known"].all()


def test_incomplete_rows_are_dropped_where_training_drops_them(states, monkeypatch, capfd):
    monkeypatch.setattr(states.recommender.config.data, "incomplete", "drop")
    result = states.append(NEW.assign(product=["p01", None, "p02"]))
    assert (result.events, result.users, result.incomplete) == (2, 1, 1)
    said = capfd.readouterr().err
    assert "append: 1 of 3 rows have no user, item or time: dropped" in said
    with pytest.raises(DataError, match=r"^append: no rows are left, all 3 are incomplete"):
        states.append(NEW.assign(product=pd.Series([None] * 3, dtype="string")))


def test_what_is_forgotten_stays_forgotten(fitted, tmp_path):
    with fitted.states(tmp_path / "states") as states:
        users = len(states)
        assert states.forget([101, 101, 999]) == 1
        assert len(states) == users - 1
    with fitted.states(tmp_path / "states") as states:
        assert len(states) == users - 1
        assert not states.recommend([101], k=1)["known"].any()


def test_a_build_that_was_interrupted_goes_on(fitted, tmp_path, monkeypatch):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(build, "write_histories", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fitted.states(tmp_path / "states")
    assert rebuild.identity(tmp_path / "states") is not None
    with fitted.states(tmp_path / "states") as states:
        assert len(states) == fitted.session.prepared.num_users


def test_wrong_events_and_settings_are_refused(fitted, states):
    with pytest.raises(DataError, match=r"append: column 'when' is missing.*mean 'When'"):
        states.append(NEW.rename(columns={"when": "When"}))
    with pytest.raises(DataError, match=r"append.*'customer' is null in 1 rows"):
        states.append(NEW.assign(customer=pd.array([100, None, 3], "Int64")))
    with pytest.raises(
        DataError, match=r"^append: column 'when' is null in 1 rows, first in row 1"
    ):
        states.append(NEW.assign(when=[NEW["when"][0], None, NEW["when"][2]]))
    with pytest.raises(DataError, match="does not remember what users have seen"):
        states.recommend([100], exclude_seen=True)
    with pytest.raises(StoreError, match="open for writing by"):
        fitted.states(local_path(states.store.root))
