"""The benchmark of long serving at tiny size: every figure is there, of both runs."""

import json

import pytest

from benchmarks import long_serving


@pytest.mark.slow
def test_a_tiny_run(tmp_path):
    output = tmp_path / "long_serving.json"
    sizes = "--rounds=20 --report-every=10 --compact-every=5 --users=20 --shards=2"
    long_serving.main([*sizes.split(), f"--output={output}"])
    result = json.loads(output.read_text())
    kept, compacted = result["rows"]
    assert (kept["compact_every"], compacted["compact_every"]) == (0, 5)
    for run in result["rows"]:
        assert [line["rounds"] for line in run["rounds"]] == [10, 20]
        assert run["growth"]["rounds"] == 10
        assert run["growth"]["descriptors"] == 0
        assert all(line["resident_bytes"] > 1 << 20 for line in run["rounds"])
    assert compacted["rounds"][-1]["disk_bytes"] < kept["rounds"][-1]["disk_bytes"]
    assert kept["compacted_disk_bytes"] < kept["rounds"][-1]["disk_bytes"]
    assert "benchmarks.long_serving" in result["command"]
