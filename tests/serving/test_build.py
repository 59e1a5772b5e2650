"""States of all users from histories, going on, and the check that tells wrong ones."""

import dataclasses

import numpy as np
import pytest

from jaxrec.errors import DataError
from jaxrec.serving import build
from tests.serving import standin
from tests.serving.standin import USERS, histories


@pytest.fixture(params=["plain", "repeats"])
def rec(request):
    return standin.make(**({"repeat_half_lives": (5.0,)} if request.param == "repeats" else {}))


def test_built_in_parts_by_shards_and_right(rec, tmp_path):
    data = histories(rec)
    rec.create_store(tmp_path / "states", num_shards=3).close()
    with rec.open_store(tmp_path / "states", shards=[1]) as store:
        one = build.build_states(rec, store, data)
    assert 0 < one.users < USERS
    assert one.there_before == 0
    with rec.open_store(tmp_path / "states") as store:
        found = build.verify(rec, store, data)
        assert (found.checked, found.missing) == (one.users, USERS - one.users)
        rest = build.build_states(rec, store, data)
        assert rest == build.Built(USERS - one.users, one.users)
        assert build.build_states(rec, store, data) == build.Built(0, USERS)
        found = build.verify(rec, store, data, sample=12)
        assert (found.checked, found.changed, found.missing) == (12, 0, 0)
        assert found.passed
        assert 0 < found.difference <= 1e-5
        rec.append(store, [50], [1000], [standin.ORIGIN + 10**8])
        assert build.verify(rec, store, data).changed == 1
        with pytest.raises(ValueError, match="sample=0: at least 1"):
            build.verify(rec, store, data, sample=0)
        store.delete(data.users.tolist())
        nobody = build.verify(rec, store, data)
        assert (nobody.checked, nobody.missing, nobody.passed) == (0, USERS, False)


def test_wrong_states_are_found_and_named(tmp_path):
    rec = standin.make()
    data = histories(rec)
    with rec.create_store(tmp_path / "states", num_shards=1) as store:
        build.build_states(rec, store, data)
        user = int(data.users[np.argmax(data.lengths)])

        def spoil(ids, columns, found):
            columns["tokens.k"][:, 0, -1] += 0.1
            return columns

        store.update([user], spoil)
        found = build.verify(rec, store, data)
        assert not found.passed
        assert found.user == user

        def not_a_number(ids, columns, found):
            columns["tokens.v"][:] = np.nan
            return columns

        store.update([user], not_a_number)
        found = build.verify(rec, store, data)
        assert not found.passed
        assert np.isnan(found.difference)


@pytest.mark.parametrize("form", ["bfloat16", "int8"])
def test_compact_forms_are_within_their_bound(tmp_path, form):
    rec = standin.make()
    data = histories(rec)
    with rec.create_store(tmp_path / "states", form=form, num_shards=1) as store:
        build.build_states(rec, store, data)
        found = build.verify(rec, store, data)
    assert found.passed
    assert 1e-5 < found.difference <= found.bound == build.BOUNDS[form]


def test_other_data_is_refused(tmp_path):
    rec = standin.make()
    data = dataclasses.replace(histories(rec), time_origin=1)
    with rec.create_store(tmp_path / "states", num_shards=1) as store:
        with pytest.raises(DataError, match="times from 1: the model was trained on other data"):
            build.build_states(rec, store, data)
        with pytest.raises(DataError, match="Set --cache-dir"):
            build.verify(rec, store, data)
