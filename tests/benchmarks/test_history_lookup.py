"""The benchmark of history lookups on a shape that takes no time."""

import json

from benchmarks import history_lookup


def test_both_methods_agree_and_are_timed(tmp_path, monkeypatch, capsys):
    output = tmp_path / "lookup.json"
    argv = ["history_lookup", "--batch=2", "--events=9", "--negatives=6", "--catalog=12"]
    monkeypatch.setattr("sys.argv", [*argv, "--repeats=2", "--no-step", f"--output={output}"])
    history_lookup.main()
    (row,) = json.loads(output.read_text())["rows"]
    assert row["negatives_in_history"]["max"] > 0
    assert max(row["largest_relative_difference"].values()) < 1e-5
    assert row["times"]["lookup"]["runs"] == 2
    assert f"{row['times_faster']['median']:.1f} times faster" in capsys.readouterr().out
