"""The preparation on Beam workers gives the bytes of the one in threads."""

import importlib.util
import json
import subprocess
import sys

import numpy as np
import polars as pl
import pytest

from jaxrec.data import digests
from tests.data import upstream

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("apache_beam") is None,
    reason="apache_beam is not installed (pip install 'jaxrec[beam]')",
)
# in a process of its own: Beam's imports and threads warn, and warnings are errors here
SCRIPT = """
import json, sys
from jaxrec.config import DataConfig
from jaxrec.data import beam, prepare, sorting
from jaxrec.errors import DataError
engine = beam.Pool() if {beam} else None
for config, folder in json.loads(sys.stdin.read()):
    sorting.BUCKET = {bucket} * (1000 if config["dataset"] == "completejourney" else 1)
    keys = {{k: tuple(v) if isinstance(v, list) else v for k, v in config.items()}}
    try:
        prepare(DataConfig(**keys), folder, engine)
        print(json.dumps("fine"))
    except DataError as error:
        print(json.dumps(str(error)))
"""


def prepare(configs, root, beam, bucket=200):
    """What was said of each configuration; folder i of `root` holds what was prepared."""
    given = json.dumps([[config, str(root / str(i))] for i, config in enumerate(configs)])
    script = SCRIPT.format(bucket=bucket, beam=beam)
    done = subprocess.run(
        [sys.executable, "-c", script], input=given, text=True, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def contents(folder):
    """What was prepared: all files but locks and marks of files (place, inode, time)."""
    files = {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and ".lock" not in file.name and file.name != digests.FILE
    }
    # NumPy's archives hold the time of writing
    return {name: content for name, content in files.items() if not name.endswith(".npz")}


def day(folder, number, events=500, **changes):
    rng = np.random.default_rng(number)
    pl.DataFrame(
        {
            "user_id": [f"u{n}" for n in rng.integers(0, 40, events)],
            "item_id": rng.integers(0, 30 + 5 * number, events),
            # many ties: files and rows must keep their order
            "timestamp": 10**9 + rng.integers(0, 50, events) + number // 2,
            "kind": [["buy", "view", "like"][n] for n in rng.integers(0, 1 + number, events)],
        }
    ).with_columns(**changes).write_parquet(folder / f"day{number}.parquet")


def test_the_same_bytes(tmp_path):
    for number in range(3):
        day(tmp_path, number)
    table = {"dataset": "table", "path": str(tmp_path / "day*.parquet"), "event_column": "kind"}
    few = {"min_item_events": 1, "min_user_events": 1}
    configs = [
        {**table, "core": True, "min_item_events": 22, "min_user_events": 25},
        {**table, **few, "repeats": "first", "duplicates": "drop"},
        {**table, **few, "repeats": "consecutive", "event_types": ["view", "like"]},
        {**table, **few, "split": "time", "max_user_events": 40},
        {"dataset": "completejourney", "min_item_events": 2000},
    ]
    for name, (dataset, write) in upstream.ALL.items():
        configs.append({"dataset": dataset, **few, **write(tmp_path / "in" / name)})
    ours = prepare(configs, tmp_path / "beam", beam=True)
    theirs = prepare(configs, tmp_path / "threads", beam=False)
    assert ours == theirs == ["fine"] * len(configs)
    for index in range(len(configs)):
        folders = [tmp_path / name / str(index) for name in ("beam", "threads")]
        found, wanted = (contents(folder) for folder in folders)
        assert found.keys() == wanted.keys(), configs[index]
        # by name: a difference of whole files would be spelled out byte by byte
        assert [name for name in found if found[name] != wanted[name]] == [], configs[index]
        assert any("array_record" in name for name in found)
    shards = list((tmp_path / "beam" / "0").rglob("*.array_record*"))
    assert len(shards) > 2


def test_what_is_refused(tmp_path):
    """With the message of the threads, and nothing is left."""
    broken = {
        "text": {"item_id": pl.lit("x")},
        "null": {"user_id": pl.lit(None, pl.String)},
        "milliseconds": {"timestamp": pl.col("timestamp") * 1000},
        "far": {"timestamp": pl.lit(5 * 10**9)},
    }
    configs = []
    for name, changes in broken.items():
        folder = tmp_path / name
        folder.mkdir()
        day(folder, 0)
        day(folder, 1, **changes)
        configs.append({"dataset": "table", "path": str(folder / "day*.parquet")})
    folder = tmp_path / "damaged"
    folder.mkdir()
    for number in (0, 1):
        day(folder, number)
    (folder / "day1.parquet").write_bytes((folder / "day0.parquet").read_bytes()[:1000])
    configs.append({"dataset": "table", "path": str(folder / "day*.parquet")})
    configs.append({**configs[0], "path": str(folder / "day0.parquet"), "min_item_events": 10**6})
    zones = tmp_path / "zones"
    zones.mkdir()
    for number, end in enumerate(("", "Z")):
        day(zones, number, timestamp=pl.lit(f"2024-01-31T12:00:00{end}"))
    configs.append({"dataset": "table", "path": str(zones / "day*.parquet")})
    ours = prepare(configs, tmp_path / "beam", beam=True)
    theirs = prepare(configs, tmp_path / "threads", beam=False)
    assert "fine" not in ours
    # times with and without a zone are found behind the reading, in other words
    assert ours[:-1] == theirs[:-1]
    assert "times with a zone" in ours[-1]
    assert "times without a zone" in ours[-1]
    assert not [f for f in (tmp_path / "beam").glob("*/*") if f.is_dir()]


def test_the_command(tmp_path):
    day(tmp_path, 0)
    command = [
        sys.executable,
        *("-m", "jaxrec.cli.prepare", f"--config=configs/table.py:{tmp_path / 'day0.parquet'}"),
        f"--workdir={tmp_path / 'run'}",
    ]
    options = "--beam_options=--runner=FnApiRunner --direct_num_workers=2"
    done = subprocess.run([*command, "--beam", options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["rows"] == 500
    done = subprocess.run([*command, options], capture_output=True, text=True)
    assert done.returncode == 2
    assert "--beam is not given" in done.stderr
