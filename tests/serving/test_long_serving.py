"""A process that serves for long does not grow: memory, descriptors and compiled programs."""

import gc
import os
import sys

import numpy as np
import pytest

from jaxrec.state_store import UserStateStore
from tests.serving import standin

USERS = list(range(8))


def serve(rec, store, folder, call):
    items, times = standin.history(call, 2, standin.ORIGIN + call)
    rec.append(store, [call % len(USERS)] * 2, items, times)
    rec.recommend(store, USERS, k=3)
    with rec.open_store(folder, mode="r") as opened:
        rec.recommend(opened, USERS, k=3)


def grown(call, first, calls):
    """What `calls` calls add behind `first` ones: Python's blocks, descriptors."""
    gc.disable()  # what needs a collection is not counted as freed before one
    try:
        for number in range(first):
            call(number)
        gc.collect()
        before = sys.getallocatedblocks(), len(os.listdir("/proc/self/fd"))
        for number in range(first, first + calls):
            call(number)
        gc.collect()
    finally:
        gc.enable()
    return sys.getallocatedblocks() - before[0], len(os.listdir("/proc/self/fd")) - before[1]


@pytest.mark.parametrize("url", ["local", "file://", "memory://"])
def test_opening_and_reading_leaves_nothing_behind(tmp_path, url):
    # each opening of one shard left some 40 blocks behind, and 9 KB of eight shards
    rec = standin.make()
    place = {"local": str(tmp_path / "s"), "file://": f"file://{tmp_path}/s"}.get(url, url)
    place = place if url != "memory://" else f"memory://{tmp_path.name}/long"
    with rec.create_store(place, num_shards=2) as store:
        rec.append(store, USERS, [1000] * 8, [standin.ORIGIN] * 8)

    def call(_):
        with UserStateStore.open(place, None) as opened:
            opened.read(USERS)

    blocks, descriptors = grown(call, 30, 300)
    assert blocks < 300  # less than one a call
    assert descriptors == 0


def test_appends_and_recommendations_leave_nothing_behind(tmp_path):
    rec = standin.make()
    with rec.create_store(tmp_path / "s", num_shards=2) as store:
        call = lambda number: serve(rec, store, tmp_path / "s", number)  # noqa: E731
        grown(call, 0, 40)
        programs = rec.traces.total()
        # what other tests left running in this process may grow once; a leak grows in both
        windows = [grown(lambda n, by=by: call(n + by), 20, 100) for by in (40, 160)]
    assert min(blocks for blocks, _ in windows) < 300  # of 100 calls
    assert not any(descriptors for _, descriptors in windows)
    assert rec.traces.total() == programs
    assert np.isin(store.read(USERS)[1], True).all()
