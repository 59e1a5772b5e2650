"""A small store: rows whose content tells user and version."""

import numpy as np

from jaxrec.state_store import Binding, RowSpec, UserStateStore

BINDING = Binding(params="p1", layout="l1", vocabulary="v1", encoding="float32")
WIDTH = 96
SPEC = RowSpec.of({"x": np.zeros((1, 2, WIDTH // 2), np.float32), "version": np.zeros(1, np.int64)})


def content(user, version):
    """float32 [2, WIDTH / 2]: every number depends on user and version."""
    seed = abs(hash_of(user)) % 2**31
    base = np.arange(WIDTH, dtype=np.float32).reshape(2, -1)
    return base + np.float32(seed % 10007) * 128 + np.float32(version) * 3


def hash_of(user):
    return user if isinstance(user, int) else sum(map(ord, user)) * 31 + 17


def columns(users, version=0):
    """The rows of users, all of one version."""
    rows = np.zeros((len(users), 2, WIDTH // 2), np.float32)
    for i, user in enumerate(users):
        rows[i] = content(user, version)
    return {"x": rows, "version": np.full(len(users), version, np.int64)}


def create(url, num_shards=3, **options):
    return UserStateStore.create(url, SPEC, BINDING, num_shards, **options)


def reopen(url, **options):
    return UserStateStore.open(url, BINDING, spec=SPEC, **options)


def check_whole(users, known, rows):
    """Every found row is that of its user, in one version; returns the versions."""
    for user, is_known, x, version in zip(users, known, rows["x"], rows["version"], strict=True):
        expected = content(user, version) if is_known else np.zeros_like(x)
        np.testing.assert_array_equal(x, expected, err_msg=f"user {user!r}")
    return rows["version"]


def columns_after(users, rows):
    """The rows of users, 1,000 versions after `rows`."""
    new = columns(users)
    for i, (user, version) in enumerate(zip(users, rows["version"] + 1000, strict=True)):
        new["x"][i], new["version"][i] = content(user, version), version
    return new


def everything(where, users):
    """What a whole read of a store gives; every row is checked."""
    with reopen(where) as store:
        rows, known = store.read(users)
        check_whole(users, known, rows)
        listed = sorted(str(user) for ids, _ in store.iterate() for user in ids)
        return rows["version"].tolist(), known.tolist(), listed
