"""States of all users from histories, going on, and the check that tells wrong ones."""

import dataclasses

import numpy as np
import pytest

from jaxrec.errors import DataError
from jaxrec.serving import build, verification
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
    assert one.already_built == 0
    with rec.open_store(tmp_path / "states") as store:
        result = verification.verify(rec, store, data)
        assert (result.checked, result.missing) == (one.users, USERS - one.users)
        rest = build.build_states(rec, store, data)
        assert rest == build.BuildResult(USERS - one.users, one.users)
        assert build.build_states(rec, store, data) == build.BuildResult(0, USERS)
        result = verification.verify(rec, store, data, sample=12)
        assert (result.checked, result.changed, result.missing) == (12, 0, 0)
        assert result.passed
        assert 0 < result.difference <= 1e-5
        rec.append(store, [50], [1000], [standin.ORIGIN + 10**8])
        assert verification.verify(rec, store, data).changed == 1
        with pytest.raises(ValueError, match="sample=0: at least 1"):
            verification.verify(rec, store, data, sample=0)
        store.delete(data.users.tolist())
        nobody = verification.verify(rec, store, data)
        assert (nobody.checked, nobody.missing, nobody.passed) == (0, USERS, False)


def test_wrong_states_are_found_and_named(tmp_path):
    rec = standin.make()
    data = histories(rec)
    with rec.create_store(tmp_path / "states", num_shards=1) as store:
        build.build_states(rec, store, data)
        user = int(data.users[np.argmax(data.lengths)])

        def spoil(ids, columns, known):
            columns["tokens.k"][:, 0, -1] += 0.1
            return columns

        store.update([user], spoil)
        result = verification.verify(rec, store, data)
        assert not result.passed
        assert result.user == user

        def not_a_number(ids, columns, known):
            columns["tokens.v"][:] = np.nan
            return columns

        store.update([user], not_a_number)
        result = verification.verify(rec, store, data)
        assert not result.passed
        assert np.isnan(result.difference)


@pytest.mark.parametrize("encoding", ["bfloat16", "int8"])
def test_compact_encodings_are_within_their_bound(tmp_path, encoding):
    rec = standin.make()
    data = histories(rec)
    with rec.create_store(tmp_path / "states", encoding=encoding, num_shards=1) as store:
        build.build_states(rec, store, data)
        result = verification.verify(rec, store, data)
    assert result.passed
    assert 1e-5 < result.difference <= result.bound == verification.BOUNDS[encoding]


def test_other_data_is_refused(tmp_path):
    rec = standin.make()
    data = dataclasses.replace(histories(rec), time_origin=1)
    with rec.create_store(tmp_path / "states", num_shards=1) as store:
        with pytest.raises(DataError, match="times from 1: the model was trained on other data"):
            build.build_states(rec, store, data)
        with pytest.raises(DataError, match="Set --cache-dir"):
            verification.verify(rec, store, data)
