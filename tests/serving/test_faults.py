"""Appends that are killed: nothing acknowledged is lost, no row is mixed, nothing comes twice."""

import random
import subprocess
import sys
import time

import numpy as np
import pytest

from jaxrec.data.records import Record
from jaxrec.serving import AppendResult, verification
from tests.serving import process, standin
from tests.serving.standin import ORIGIN, Histories


def histories(rec, steps):
    """steps [U]: what the users have when the first so many steps were appended."""
    days = [process.day(number) for number in range(steps.max())]
    columns = [np.concatenate(part) for part in zip(*days, strict=True)]
    step = np.repeat(np.arange(len(days)), [len(users) for users, *_ in days])
    records = []
    for user, known in enumerate(steps):
        users, items, times = (c[step < known] for c in columns)
        order = np.flatnonzero(users == user)  # times ascend
        dense = rec.catalog.vocabulary.encode(items[order])
        records.append(Record(dense, (times[order] - ORIGIN).astype(np.int32), None))
    return Histories(np.arange(len(steps)), records, rec.catalog.vocabulary, ORIGIN)


def steps_of(rec, store, acknowledged):
    """How many steps each user's row holds [U]: all acknowledged ones, or one more."""
    users = np.arange(process.USERS)
    added = [np.bincount(process.day(number)[0]) for number in range(acknowledged + 1)]
    counts = np.cumsum([0 * users, *added], axis=0)
    rows, known = store.read(users)
    assert known.all()
    more = rows["events"] == counts[acknowledged + 1]
    assert ((rows["events"] == counts[acknowledged]) | more).all()
    return acknowledged + more


def kill_rounds(where, rounds, sample):
    """Kills an appending process at random moments; returns how often a step was cut in two."""
    rec, rng = process.recommender(), random.Random(3)
    rec.create_store(where, num_shards=3).close()
    done = cut = 0
    for _ in range(rounds):
        child = subprocess.Popen(
            [sys.executable, "-m", "tests.serving.process", str(where), str(done)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        line = child.stdout.readline()
        assert line == "ready\n", line + child.stderr.read()
        acknowledged = [int(child.stdout.readline()) for _ in range(rng.randrange(1, 3))]
        time.sleep(rng.uniform(0, 0.1))
        child.kill()
        acknowledged += [int(line) for line in child.stdout]
        child.communicate()
        assert acknowledged == list(range(done, done + len(acknowledged)))
        done += len(acknowledged)
        with rec.open_store(where, mode="r") as store:
            steps = steps_of(rec, store, done)
            result = verification.verify(rec, store, histories(rec, steps), sample=sample)
            assert (result.checked, result.changed, result.missing) == (sample, 0, 0)
            assert result.passed
        cut += len(np.unique(steps)) > 1
        with rec.open_store(where) as store:  # the step at which it was killed, again
            again = rec.append(store, *process.day(done), idempotent=True)
            assert again.already_applied == np.count_nonzero(steps > done)
            assert (steps_of(rec, store, done) == done + 1).all()
        done += 1
    return cut


def test_killed_appends_go_on_and_verify(tmp_path):
    kill_rounds(tmp_path / "states", 1, 16)


@pytest.mark.slow
def test_100_killed_appends(tmp_path):
    assert kill_rounds(tmp_path / "states", 100, 48) > 0


@pytest.fixture
def rec():
    return standin.make()


def test_the_same_events_are_added_once(rec, tmp_path, monkeypatch):
    monkeypatch.setattr("jaxrec.serving.service.BATCH", 64)
    days = [process.day(step) for step in range(4)]

    class Killed(Exception):
        pass

    def killed(values, total):
        for count, value in enumerate(values):
            if count == 3:
                raise Killed
            yield value

    with (
        rec.create_store(tmp_path / "once", num_shards=2, keep_seen=3) as store,
        rec.create_store(tmp_path / "plain", num_shards=2, keep_seen=3) as plain,
    ):
        for events in days:
            with pytest.raises(Killed):
                rec.append(store, *events, idempotent=True, progress=killed)
            done = rec.append(store, *events, idempotent=True)
            assert done.users == process.USERS - 3 * 64
            assert done.already_applied == 3 * 64
            store.compact([0])  # what was applied is known afterwards too
            again = rec.append(store, *events, idempotent=True)
            assert again == AppendResult(0, 0, 0, 0, process.USERS)
            rec.append(plain, *events)
        users = np.arange(process.USERS)
        (rows, _), (expected, _) = store.read(users), plain.read(users)
        for name, column in expected.items():
            np.testing.assert_array_equal(rows[name], column, err_msg=name)
        # three are remembered
        assert rec.append(store, *days[1], idempotent=True).already_applied == process.USERS
        assert rec.append(store, *days[0], idempotent=True).already_applied == 0
