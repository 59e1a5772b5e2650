"""The attention benchmark on a layout that takes no time."""

import json

import pytest

from benchmarks import attention, figures


def test_layouts_are_read():
    assert attention.parse_layout("3 x (5+2)").segments == ((5, 2),) * 3
    with pytest.raises(ValueError, match=r"layout '3x5': write segments x \(items \+ tokens\)"):
        attention.parse_layout("3x5")


def test_a_row_and_its_table(tmp_path, capsys, monkeypatch):
    output = tmp_path / "attention.json"
    argv = ["attention", "--layouts", "2x(3+1)", "--kinds", "softmax", "--batch", "2", "--heads"]
    argv += ["1", "--head_width", "4", "--repeats", "2", f"--output={output}"]
    monkeypatch.setattr("sys.argv", argv)
    attention.main()
    printed = capsys.readouterr().out
    record = json.loads(output.read_text())
    (row,) = record["rows"]
    assert row["largest_relative_difference"] < 1e-5
    assert (row["pairs_dense"], row["pairs_blocked"]) == (64, 40)
    for name, ratio in row["speedup"].items():
        low, high = row["speedup_quartiles"][name]
        assert low <= ratio <= high
        assert row["times"][f"{name} dense"]["runs"] == 2
        assert f"{ratio:.1f}x" in printed
    assert "2x(3+1) | softmax | forward+backward |" in figures.attention(record)


def test_another_backend_and_dtype(monkeypatch, capsys):
    argv = "attention --layouts 2x(3+1) --kinds pointwise --batch 2 --heads 1 --head_width 4"
    argv += " --repeats 1 --backend fused --dtype bfloat16"
    monkeypatch.setattr("sys.argv", argv.split())
    attention.main()
    printed = capsys.readouterr().out
    assert "dense      fused  faster" in printed
    difference = float(printed.splitlines()[-1].split()[-1])
    assert 1e-4 < difference < 2e-2  # of numbers of 8 bits


def test_unknown_kinds(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["attention", "--kinds", "linear"])
    with pytest.raises(SystemExit):
        attention.main()
    assert "known are pointwise (HSTU), softmax" in capsys.readouterr().err
