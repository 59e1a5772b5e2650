"""The benchmark runs, compares equal rows, and writes what a reader needs to repeat it."""

import json
import sys

import numpy as np
import pytest

from benchmarks import store as benchmark


def run(monkeypatch, tmp_path, *options):
    sizes = {
        "users": 300,
        "row-bytes": 512,
        "shards": 2,
        "read-batch": 40,
        "write-batch": 16,
        "repeats": 2,
        "warmup": 1,
        "cold": 1,
        "folder": tmp_path,
        "output": tmp_path / "out.json",
    }
    flags = [f"--{name}={value}" for name, value in sizes.items()]
    monkeypatch.setattr(sys, "argv", ["store", *flags, *options])
    benchmark.main()
    return json.loads((tmp_path / "out.json").read_text())


def test_a_small_run(monkeypatch, tmp_path):
    result = run(monkeypatch, tmp_path)
    assert "python -m benchmarks.store --users=300" in result["command"]
    assert result["settings"]["row_bytes"] == 512
    assert set(result["rows"]) == {"store", "zarr3", "memmap"}
    for row in result["rows"].values():
        for what, users in (("read", 40), ("write", 16), ("update", 16), ("cold read", 40)):
            assert row[what]["users"] == users
            assert row[what]["min_s"] <= row[what]["median_s"] <= row[what]["max_s"]
            assert row[what]["users_per_s"] == pytest.approx(users / row[what]["median_s"])
        assert row["disk_bytes"] >= 300 * 512
    store = result["rows"]["store"]
    assert 300 * 512 < store["disk_bytes_after_compact"] < store["disk_bytes"]
    assert store["memory_bytes"] > 0
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]  # nothing is left


def test_stores_that_differ_are_not_compared(monkeypatch, tmp_path):
    monkeypatch.setattr(benchmark.Memmap, "update", lambda self, users: None)
    with pytest.raises(AssertionError, match="different rows"):
        run(monkeypatch, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["store", "zarr3", "memmap"])
def test_stores_hold_what_is_written(tmp_path, kind):
    make = {
        "store": lambda: benchmark.Store(tmp_path / "x", 20, 8, 2),
        "zarr3": lambda: benchmark.Zarr(tmp_path / "x", 20, 8),
        "memmap": lambda: benchmark.Memmap(tmp_path / "x", 20, 8),
    }
    store = make[kind]()
    rows = benchmark.random_rows(np.random.default_rng(0), 20, 8).copy()
    store.fill(0, rows[:12])
    store.fill(12, rows[12:])
    store.write(np.array([3, 1]), rows[[1, 3]])
    store.update(np.array([5, 3]))
    rows[[3, 1]] = rows[[1, 3]]
    rows[[5, 3]] ^= 1
    users = np.array([19, 3, 5, 1, 0])
    np.testing.assert_array_equal(store.read(users), rows[users])
    benchmark.drop_cache(tmp_path / "x")
    np.testing.assert_array_equal(store.reopen().read(users), rows[users])
