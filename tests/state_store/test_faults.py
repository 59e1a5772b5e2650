"""Kills, full disks, other processes: acknowledged rows are there, whole.

Real processes are killed; see process.py for what they run.
"""

import contextlib
import os
import random
import subprocess
import sys
import time

import numpy as np
import pytest

from jaxrec.errors import StoreError
from tests.state_store import process
from tests.state_store.standin import SPEC, check_whole, columns, create, everything, reopen


def start(role, *args, wrap=()):
    command = [*wrap, sys.executable, "-m", "tests.state_store.process", role, *map(str, args)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


@contextlib.contextmanager
def running(role, *args):
    """A process that has said `ready`; killed at the end."""
    child = start(role, *args)
    try:
        line = child.stdout.readline()
        assert line == "ready\n", line + child.stderr.read()
        yield child
    finally:
        child.kill()
        child.communicate()


# -- kills -----------------------------------------------------------------------------------


def kill_rounds(where, rounds):
    """Kills a writer at random moments and compares what is left with what it had told."""
    users = list(range(process.USERS))
    with create(where, 3) as store:
        store.write(users, columns(users, 1))
    versions = dict.fromkeys(users, 1)
    rng = random.Random(5)
    steps = during = 0
    for seed in range(rounds):
        with running("churn", where, seed) as child:
            acknowledged = [int(child.stdout.readline()) for _ in range(rng.randrange(6))]
            time.sleep(rng.uniform(0.0, 0.04))
            child.kill()
            # not `communicate`, which leaves out what `readline` has buffered
            acknowledged += [int(line) for line in child.stdout]
        assert acknowledged == list(range(len(acknowledged)))
        steps += len(acknowledged)
        for step in acknowledged:
            versions = after(versions, seed, step)
        maybe = after(versions, seed, len(acknowledged))
        for mode in ("r", "w"):  # as a reader finds it, and once a writer has cleaned up
            with reopen(where, mode=mode) as store:
                rows, known = store.read(users)
                stored = check_whole(users, known, rows).tolist()
                for user in users:
                    assert stored[user] in (versions[user], maybe[user]), (seed, user)
                assert list(store.damaged()) == []
                assert {u for ids, _ in store.iterate() for u in ids} == {
                    user for user in users if stored[user]
                }
        during += stored != [versions[user] for user in users]
        versions = dict(enumerate(stored))
    return steps, during


def after(versions, seed, step):
    """Versions of users (0: no row) when a step of `churn` is done."""
    what, users = process.plan(seed, step)
    if what == "compact":
        return versions
    return versions | dict.fromkeys(users, 0 if what == "delete" else step + 1)


def test_a_killed_writer_leaves_acknowledged_rows(tmp_path):
    steps, _ = kill_rounds(tmp_path / "s", 5)
    assert steps > 5


@pytest.mark.slow
def test_100_kills(tmp_path):
    steps, during = kill_rounds(tmp_path / "s", 100)
    assert steps > 100
    assert during > 0  # some kills did hit a write that was not acknowledged


# -- several processes -------------------------------------------------------------------------


def test_the_lock_of_another_process_is_named_and_ends_with_it(tmp_path):
    create(tmp_path / "s").close()
    with running("hold", tmp_path / "s") as child:
        with pytest.raises(StoreError, match=f"open for writing by process {child.pid} on"):
            reopen(tmp_path / "s", mode="w")
        assert not reopen(tmp_path / "s").read([1])[1].any()  # reading needs no lock
        child.kill()
        child.wait()
        reopen(tmp_path / "s", mode="w").close()


def test_processes_write_different_shards_at_the_same_time(tmp_path):
    create(tmp_path / "s", 2).close()
    users = list(range(600))
    reader, seen = reopen(tmp_path / "s"), np.zeros(600, np.int64)
    with contextlib.ExitStack() as stack:
        children = [stack.enter_context(running("fill", tmp_path / "s", i)) for i in range(2)]
        while any(child.poll() is None for child in children):
            rows, known = reader.read(users)
            versions = check_whole(users, known, rows)
            assert (versions >= seen).all()
            seen = versions
        for child in children:
            assert child.returncode == 0, child.stderr.read()
    assert (reader.read(users)[0]["version"] == 10).all()


# -- disks -------------------------------------------------------------------------------------


def test_files_that_cannot_grow(tmp_path):
    child = start("small_files", tmp_path / "s")
    out, errors = child.communicate()
    assert child.returncode == 0, errors
    write, *rest = out.splitlines()
    assert write.startswith("write: 100 users: ")
    assert "File too large" in write
    assert rest == ["old: True", "old: True", "new: True"]


def test_a_full_disk_leaves_the_old_rows(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = f'mount -t tmpfs -o size=1m none "{disk}" && exec "$@"'
    wrap = ("unshare", "--mount", "sh", "-c", mount, "sh")
    try:
        child = start("full_disk", disk, wrap=wrap)
    except FileNotFoundError:
        pytest.skip("no `unshare` here to mount a small disk with")
    out, errors = child.communicate()
    if "mount" in errors or "unshare" in errors:
        pytest.skip(f"a small disk cannot be mounted here: {errors.strip()}")
    assert child.returncode == 0, errors
    lines = out.splitlines()
    assert lines.pop(0) == "full: No space left on device"
    for what, users in (("write", 100), ("update", 100), ("compact", 0)):
        line = lines.pop(0)
        assert line.startswith(f"{what}: {users} users: {disk}/store/shard-0000")
        assert "No space left on device" in line
    assert lines == ["old: True", "new: True"]


def test_memory_does_not_grow_with_the_rows(tmp_path):
    users = 30720
    child = start("memory", tmp_path / "s", users)
    out, errors = child.communicate()
    assert child.returncode == 0, errors
    assert int(out) < 0.75 * 4096 * users


def test_a_place_that_cannot_be_written(tmp_path):
    if os.geteuid() == 0:  # root may write everywhere: a file in the way stops it too
        (tmp_path / "s").write_text("not a folder")
    else:
        (tmp_path / "s").mkdir(mode=0o500)
    with pytest.raises(StoreError, match=str(tmp_path / "s")):
        create(tmp_path / "s")


def test_leftovers_of_a_killed_write_do_no_harm(tmp_path):
    """What TensorStore's own lock files would do: a longer dead manifest under a shorter one."""
    users = list(range(50))
    with create(tmp_path / "s", 2) as store:
        store.write(users, columns(users, 1))
    for path in [p for p in (tmp_path / "s").rglob("*") if p.is_file()]:
        path.with_name(path.name + ".__lock").write_bytes(b"\xa5" * 10_000)
    with reopen(tmp_path / "s", mode="w") as store:
        store.write(users[:5], columns(users[:5], 2))
        assert everything(tmp_path / "s", users)[0] == [2] * 5 + [1] * 45
        store.compact()
        store.copy(tmp_path / "t", 3)
    assert everything(tmp_path / "s", users)[0] == [2] * 5 + [1] * 45
    assert everything(tmp_path / "t", users)[0] == [2] * 5 + [1] * 45


def test_the_test_rows_tell_versions_and_users_apart():
    """Without this the checks above could pass on mixed rows."""
    rows = columns([*range(process.USERS), "a", "b"], 1)["x"].reshape(process.USERS + 2, -1)
    assert len({row.tobytes() for row in rows}) == process.USERS + 2
    torn = columns([1], 1)
    torn["x"][0, 1] = columns([1], 2)["x"][0, 1]
    with pytest.raises(AssertionError):
        check_whole([1], [True], torn)
    assert SPEC.row_bytes == rows.shape[1] * 4 + 8
