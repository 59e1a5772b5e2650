"""Processes that are killed at random moments: what they leave is what was, or what was to be.

The ordinary run kills one of each; `-m slow` kills 100 and writes the counts to the file that
`$JAXREC_ATTACKS` names (`results/attacks.json`). One process imports everything and forks those
that are killed.
"""

import multiprocessing
import random
import time

import pytest

from tests.attacks import kills, record

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["tests.attacks.kills"])


def attack(name, folder, count, seed):
    """Kills `count` processes of a role; how often the write under way was there as a whole."""
    rng, role = random.Random(seed), kills.ROLES[name](folder)
    counts = {"kills": 0, "previous state": 0, "new state": 0}
    role.begin()
    for _ in range(count):
        reader, writer = PROCESSES.Pipe(duplex=False)
        process = PROCESSES.Process(target=kills.run, args=(role, writer))
        process.start()
        writer.close()
        try:
            role.mark = reader.recv()  # begun, compiled
            start = time.perf_counter()
            role.mark = reader.recv()
            time.sleep(rng.uniform(0, 1.2) * (time.perf_counter() - start))
        finally:
            process.kill()
            process.join()
        assert process.exitcode == -9
        role.mark = acknowledged(reader, role.mark)
        new = role.state()
        counts["kills"] += 1
        counts["new state" if new else "previous state"] += 1
    return counts


def acknowledged(reader, mark):
    """The last mark that the killed process has sent."""
    try:
        while True:
            mark = reader.recv()
    except EOFError:
        return mark


@pytest.mark.parametrize("name", kills.ROLES)
def test_killed_processes_leave_the_old_or_the_new(tmp_path, name):
    assert attack(name, tmp_path, 1, 3)["kills"] == 1


@pytest.mark.slow
def test_100_killed_processes(tmp_path):
    rows = {}
    for name in kills.ROLES:
        (tmp_path / name).mkdir()
        rows[name] = attack(name, tmp_path / name, 20, 5)
    assert sum(counts["kills"] for counts in rows.values()) == 100
    assert all(counts["previous state"] for counts in rows.values())  # writes were cut
    record.save("kills", rows)
