"""The benchmark of serving at tiny size: every figure is there and the targets are judged."""

import json
import sys

import pytest

from benchmarks import serving

TINY = """--histories 9 16 --batches 1 3 --segment 4 --tokens 1 --width 8 --layers 1 --heads 2
--catalog 40 --block 1 --full-users 1 --seconds 0.01 --extend-batch 2 --extend-repeats 1"""


@pytest.mark.slow
def test_a_tiny_run(tmp_path, monkeypatch, capsys):
    output = tmp_path / "serving.json"
    monkeypatch.setattr(sys, "argv", ["serving", *TINY.split(), f"--output={output}"])
    serving.main()
    result = json.loads(output.read_text())
    sizes = [(row["history"], row["batch"]) for row in result["rows"]]
    assert sizes == [(9, 1), (9, 3), (16, 1), (16, 3)]
    for row in result["rows"]:
        assert set(row["latency"]) == {"full", "recent", "cached", "served"}
        for line in row["latency"].values():
            assert 0 < line["p50_s"] <= line["p99_s"]
            assert line["users_per_s"] == pytest.approx(row["batch"] / line["p50_s"])
    assert [line["history"] for line in result["extend"]] == [9, 16, 32]
    sizes = {(s["history"], s["state"], s["form"]): s["vector_bytes"] for s in result["bytes"]}
    assert sizes[16, "kv", "float32"] == 2 * sizes[16, "embedding", "float32"]
    assert sizes[16, "kv", "float32"] == 2 * sizes[16, "kv", "bfloat16"]
    assert sizes[16, "kv", "int8"] == sizes[16, "kv", "bfloat16"] * 3 // 4  # H = 4: H + 2 of 2 H
    assert "benchmarks.serving" in result["command"]
    assert "cached/recent" in capsys.readouterr().out


def test_targets_are_judged():
    row = {"history": 4096, "batch": 1, "full_over_cached": 39.0, "cached_over_recent": 1.2}
    met = {line["what"]: line["met"] for line in serving.check([row])}
    assert met == {
        "history 4096, batch 1: full/cached": False,
        "history 4096, batch 1: cached/recent": True,
    }
    row = {"history": 512, "batch": 8, "full_over_cached": 3.0, "cached_over_recent": 1.31}
    assert [line["met"] for line in serving.check([row])] == [False]
