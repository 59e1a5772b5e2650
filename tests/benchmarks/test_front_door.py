"""The measure of the front door: what it counts and starts, without starting it."""

import argparse

import pytest

from benchmarks import front_door


def test_three_statements():
    assert len(front_door.statements("runs/mine")) == 3
    assert front_door.statements("runs/mine")[0].startswith("model = jaxrec.fit(events")


def test_every_start_is_measured(tmp_path, monkeypatch):
    calls = []

    def start(events, workdir, cache, settings):
        calls.append((workdir.name, cache.name))
        return {"seconds": {}, "rows": 0}

    monkeypatch.setattr(front_door, "start", start)
    monkeypatch.setattr(front_door, "write_csv", lambda path, rows: None)
    found = front_door.measure(tmp_path, {}, rows=10)
    assert [row["start"] for row in found] == ["first", "second", "finished run"] * 2
    assert [name for name, _ in calls][:3] == ["pandas frame-1", "pandas frame-2", "pandas frame-2"]
    assert len({cache for _, cache in calls}) == 2


def test_settings_are_read_as_python():
    assert front_door.setting("train.steps=20") == ("train.steps", 20)
    assert front_door.setting("model.backbone=hstu") == ("model.backbone", "hstu")
    with pytest.raises(argparse.ArgumentTypeError, match="KEY=VALUE"):
        front_door.setting("train.steps")
