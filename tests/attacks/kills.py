"""What processes write until they are killed, and what they may leave behind.

A role has `begin` (what is there before the first kill), `write` (in the process that is killed:
yields a mark when what it stands for is durable) and `state` (behind a kill: whether what was under
way is there as a whole). `state` fails for half of something, for other values than those of a
process that nobody kills, and for an acknowledged write that is gone. Then it leaves everything as
the next process shall find it.
"""

import functools
import itertools
import json
import shutil

import jax
import numpy as np

from jaxrec.config import DataConfig
from jaxrec.data import prepare
from jaxrec.data.preparation import verify
from jaxrec.runtime import checkpoint
from jaxrec.serving import Recommender, snapshot
from jaxrec.training.hooks import Hook
from tests import conftest  # noqa: F401  (devices and the compilation cache of the tests)
from tests.serving import standin
from tests.state_store import standin as rows
from tests.training import standin as training

USERS = list(range(12))
ROWS = list(range(400))  # of a store that is compacted


class Role:
    """A folder to write in, and the newest mark."""

    def __init__(self, folder):
        self.folder, self.mark = folder, None


class Marks(Hook):
    """Calls `see(step, params)` when `step` steps are done and saved."""

    def __init__(self, see):
        self.before_step = lambda step, state: see(step, state.params)


class Training(Role):
    """A run that saves a checkpoint after every step; a mark is a step."""

    STEPS = 40

    def fit(self, where, see):
        config = training.make_config(
            steps=self.STEPS, checkpoint_every=1, eval_every=self.STEPS, ema=0.0, keep=2
        )
        return training.fit(self.folder / where, config, hooks=[Marks(see)])

    def begin(self):
        self.mark, self.expected = 0, []
        self.fit("whole", lambda _, params: self.expected.append(bits(params)))

    def write(self, acknowledge):
        self.fit("run", lambda step, _: acknowledge(step))

    def state(self):
        saved, like = self.folder / "run" / "checkpoints", training.init(jax.random.key(0))
        steps = checkpoint.steps(saved) or [0]
        assert steps[-1] in (self.mark, self.mark + 1)
        for step in steps:
            if step:
                params = checkpoint.load_params(saved, like, str(step))[1]
                assert bits(params) == self.expected[step]
        new = steps[-1] > self.mark
        self.mark = steps[-1]
        if self.mark > self.STEPS - 20:
            shutil.rmtree(self.folder / "run")
            self.mark = 0
        return new


@functools.cache
def recommender():
    config = standin.config(layers=1)
    devices = jax.local_devices()[:1]
    return Recommender(config, standin.params_of(config), standin.catalog(), devices=devices)


class Appends(Role):
    """Appends of some events of every user; a mark is the number of appends."""

    def day(self, step):
        rng = np.random.default_rng(step)
        users = rng.permutation(np.repeat(USERS, rng.integers(1, 4, len(USERS))))
        items = rng.integers(0, standin.ITEMS, len(users)) * 10 + 1000
        return users, items, np.full(len(users), standin.ORIGIN + step)

    def begin(self):
        rec = recommender()
        with rec.create_store(self.folder / "whole", num_shards=3) as store:
            rec.append(store, *self.day(0))
            self.expected = [store.read(USERS)[0]]
        with rec.create_store(self.folder / "states", num_shards=3) as store:
            rec.append(store, *self.day(0), idempotent=True)
        self.mark = 0

    def write(self, acknowledge):
        rec = recommender()
        with rec.open_store(self.folder / "states") as store:
            for step in itertools.count(self.mark + 1):
                rec.append(store, *self.day(step), idempotent=True)
                acknowledge(step)

    def state(self):
        rec = recommender()
        with rec.open_store(self.folder / "whole") as store:
            while len(self.expected) < self.mark + 2:
                rec.append(store, *self.day(len(self.expected)))
                self.expected.append(store.read(USERS)[0])
        old, new = self.expected[self.mark : self.mark + 2]
        with rec.open_store(self.folder / "states", mode="r") as store:
            added = self.check(store, old, new)
        with rec.open_store(self.folder / "states") as store:
            assert (self.check(store, old, new) == added).all()
            rec.append(store, *self.day(self.mark + 1), idempotent=True)  # what was cut, again
            assert self.check(store, old, new).all()
        self.mark += 1
        return added.any()

    def check(self, store, old, new):
        """Whose rows are those of `new` [U]; the others are those of `old`."""
        found, known = store.read(USERS)
        assert known.all()
        added = found["events"] == new["events"]
        for name, column in found.items():
            for user in USERS:
                expected = (new if added[user] else old)[name][user]
                # in a smaller batch a sum is rounded otherwise
                np.testing.assert_allclose(column[user], expected, rtol=1e-5, atol=1e-6)
        return added


class Compactions(Role):
    """Compactions of a store; a mark is what generation each shard has."""

    def begin(self):
        with rows.create(self.folder / "store", 2) as store:
            store.write(ROWS, rows.columns(ROWS, 1))
        self.mark = self.generations()

    def generations(self):
        pointers = sorted((self.folder / "store").glob("shard-*/current"))
        return [json.loads(path.read_text())["content"]["generation"] for path in pointers]

    def write(self, acknowledge):
        with rows.reopen(self.folder / "store", mode="w") as store:
            while True:
                store.compact()
                acknowledge(self.generations())

    def state(self):
        new = self.generations() != self.mark
        for mode in ("r", "w"):  # as a reader finds it, and once a writer has cleaned up
            with rows.reopen(self.folder / "store", mode=mode) as store:
                columns, known = store.read(ROWS)
                assert (rows.check_whole(ROWS, known, columns) == 1).all()
                assert sorted(u for ids, _ in store.iterate() for u in ids) == ROWS
        self.mark = self.generations()
        kept = sorted((self.folder / "store").glob("shard-*/gen-*"))
        assert [path.name for path in kept] == self.mark
        return new


class Snapshots(Role):
    """Snapshots of a store; a mark is a snapshot's number."""

    def begin(self):
        rec = recommender()
        with rec.create_store(self.folder / "states", num_shards=2) as store:
            for step in range(3):
                rec.append(store, *Appends.day(self, step))
        self.write_one(rec)
        self.mark, self.expected = 1, self.content(1)

    def write_one(self, rec):
        with rec.open_store(self.folder / "states", mode="r") as store:
            return snapshot.save(rec, store, self.folder / "snapshots")

    def write(self, acknowledge):
        rec = recommender()
        while True:
            acknowledge(self.write_one(rec))

    def content(self, step):
        opened = snapshot.Snapshot(self.folder / "snapshots", step)
        parts = [(ids, {n: c.tobytes() for n, c in x.items()}) for ids, x in opened.iterate()]
        return parts, opened.load().version

    def state(self):
        newest = snapshot.Snapshot(self.folder / "snapshots").step
        assert newest in (self.mark, self.mark + 1)
        for step in range(self.mark, newest + 1):
            assert self.content(step) == self.expected
        new = newest > self.mark
        for step in range(self.mark, newest):
            shutil.rmtree(self.folder / "snapshots" / str(step))
        self.mark = newest
        return new


class Preparations(Role):
    """Preparations of one file after the other; a mark is the number of a file."""

    def begin(self):
        self.mark = 0
        self.prepare(0, "data")

    def prepare(self, number, where):
        path = self.folder / f"events-{number}.csv"
        if not path.exists():
            rng = np.random.default_rng(number)
            drawn = rng.integers(0, [60, 40, 10**6], (2000, 3))
            text = "".join(f"{user},{item},{time + 1}\n" for user, item, time in drawn)
            partial = path.with_suffix(".partial")
            partial.write_text("user_id,item_id,timestamp\n" + text)
            partial.replace(path)
        return prepare(
            DataConfig(path=str(path), dataset="table", min_item_events=1, min_user_events=1),
            self.folder / where,
        )

    def write(self, acknowledge):
        for number in itertools.count(self.mark + 1):
            self.prepare(number, "data")
            acknowledge(number)

    def complete(self):
        return len(list((self.folder / "data").rglob("complete.json")))

    def state(self):
        there = self.complete()
        assert there in (self.mark + 1, self.mark + 2)
        for number in (self.mark, self.mark + 1):
            assert self.content(number, "data") == self.content(number, "again")
            assert self.complete() == max(there, number + 1)  # what was there was not made again
        self.mark += 1
        return there > self.mark

    def content(self, number, where):
        data = self.prepare(number, where)
        verify(data)
        histories = data.histories
        return data.digest, histories.items.tobytes(), histories.times.tobytes()


def bits(tree):
    """Every number of a tree."""
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


ROLES = {role.__name__.lower(): role for role in Role.__subclasses__()}


def run(role, pipe):
    """In the process that is killed."""
    role.write(pipe.send)
