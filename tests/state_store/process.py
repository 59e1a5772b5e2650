"""Roles of other processes in the tests: `python -m tests.state_store.process ROLE ARGS...`.

Each prints one line when it is ready and one per finished step, flushed at once.
"""

import resource
import sys

import numpy as np

from jaxrec.errors import StoreError
from jaxrec.state_store import RowSpec, UserStateStore, writer
from tests.state_store.standin import BINDING, check_whole, columns, create, reopen

USERS = 120
BATCH = 16


def plan(seed, step):
    """(what, users) of one step of `churn`: the test that killed it knows the same."""
    rng = np.random.default_rng([seed, step])
    what = rng.choice(["write", "update", "delete", "compact"], p=[0.45, 0.3, 0.15, 0.1])
    users = rng.choice(USERS, BATCH, replace=False).tolist()
    return str(what), users


def churn(where, seed):
    """Changes users for ever; the row of step n has version n + 1."""
    store = reopen(where, mode="w")
    say("ready")
    for step in range(10**9):
        what, users = plan(int(seed), step)
        if what == "write":
            store.write(users, columns(users, step + 1))
        elif what == "update":
            store.update(users, lambda ids, rows, known, step=step: columns(ids, step + 1))
        elif what == "delete":
            store.delete(users)
        else:
            store.compact()
        say(step)


def hold(where):
    """Holds all shards until it is killed."""
    store = reopen(where, mode="w")
    say("ready")
    sys.stdin.read()
    store.close()


def fill(where, shard):
    """Writes ten versions of all users of one shard."""
    users = np.arange(600)
    with reopen(where, mode="w", shards=[int(shard)]) as store:
        owned = users[store.shard_of(users) == int(shard)].tolist()
        say("ready")
        for version in range(1, 11):
            store.write(owned, columns(owned, version))
        store.compact()


def full_disk(where):
    """Fills a small disk: prints what happened, in the order of the steps."""
    store = create(f"{where}/store", 2)
    users = list(range(100))
    store.write(users, columns(users, 1))
    ballast = open(f"{where}/ballast", "wb")  # noqa: SIM115
    try:
        while ballast.write(b"x" * 65536):
            ballast.flush()
    except OSError as error:
        say(f"full: {error.strerror}")
    report("write", lambda: store.write(users, columns(users, 2)))
    report("update", lambda: store.update(users, lambda ids, rows, known: columns(ids, 2)))
    report("compact", store.compact)
    rows, known = reopen(f"{where}/store").read(users)
    say(f"old: {known.all() and (check_whole(users, known, rows) == 1).all()}")
    try:
        ballast.close()
    except OSError:
        say("ballast is not whole")  # its buffer does not fit either
    ballast = open(f"{where}/ballast", "wb")  # noqa: SIM115
    ballast.close()
    store.write(users, columns(users, 3))
    store.compact()
    rows, known = reopen(f"{where}/store").read(users)
    say(f"new: {known.all() and (check_whole(users, known, rows) == 3).all()}")


def small_files(where):
    """No file may grow above 8 KiB: what a quota does."""
    store = create(where, 2)
    users = list(range(100))
    for start in range(0, 100, 20):
        part = users[start : start + 20]
        store.write(part, columns(part, 1))
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, resource.RLIM_INFINITY))
    report("write", lambda: store.write(users, columns(users, 2)))
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
    for opened in (store, reopen(where)):
        rows, known = opened.read(users)
        say(f"old: {known.all() and (check_whole(users, known, rows) == 1).all()}")
    store.write(users, columns(users, 3))
    rows, known = store.read(users)
    say(f"new: {known.all() and (check_whole(users, known, rows) == 3).all()}")


def memory(where, count):
    """Fills, reads, iterates and compacts; prints the growth of the peak in bytes."""
    writer.COMMIT_BYTES = 4 << 20
    rows = {"x": np.zeros((1024, 1024), np.float32)}
    store = UserStateStore.create(where, RowSpec.of(rows), BINDING, 2, cache_bytes=8 << 20)
    before = peak()
    for start in range(0, int(count), 1024):
        store.write(range(start, start + 1024), rows, durable=False)
    store.flush()
    for start in range(0, int(count), 1024):
        store.read(range(start, start + 1024))
    assert sum(len(ids) for ids, _ in store.iterate()) == int(count)
    store.compact()
    say(peak() - before)


def peak():
    """Bytes; `ru_maxrss` would start with that of the process that started this one."""
    with open("/proc/self/status") as status:
        (line,) = [line for line in status if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024


def report(what, act):
    try:
        act()
        say(f"{what}: done")
    except StoreError as error:
        say(f"{what}: {len(error.users)} users: {error}")


def say(line):
    print(line, flush=True)


if __name__ == "__main__":
    roles = (churn, hold, fill, full_disk, small_files, memory)
    {role.__name__: role for role in roles}[sys.argv[1]](*sys.argv[2:])
