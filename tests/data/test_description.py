import json
import subprocess
import sys

import numpy as np
import polars as pl
import pytest

from jaxrec.config import DataConfig
from jaxrec.data import description, prepare


def made(tmp_path, rows, **settings):
    columns = dict(zip(("user_id", "item_id", "timestamp"), zip(*rows, strict=True), strict=True))
    pl.DataFrame(columns).write_parquet(tmp_path / "log.parquet")
    config = DataConfig(
        dataset="table", path=str(tmp_path / "log.parquet"), min_item_events=1, min_user_events=1
    )
    for key, value in settings.items():
        setattr(config, key, value)
    return prepare(config, tmp_path / "data")


def random_log(users=40, events=30, seed=0):
    """Users live one after the other, items are drawn uniformly."""
    rng = np.random.default_rng(seed)
    return [
        (user, int(item), 10**9 + user * 10**5 + 100 * step)
        for user in range(users)
        for step, item in enumerate(rng.integers(0, 20, events))
    ]


def warned(found, text):
    return [line for line in found["warnings"] if text in line]


def test_numbers_of_a_small_log(tmp_path):
    # user 1: a a b, the last two at one time; user 2: b a b c
    rows = [(1, 10, 0), (1, 10, 5), (1, 20, 5)]
    rows += [(2, 20, 86400), (2, 10, 86401), (2, 20, 86402), (2, 30, 172800)]
    found = description.describe(made(tmp_path, rows))
    assert (found["events"], found["users"], found["items"], found["rows"]) == (7, 2, 3, 7)
    assert found["tie_share"] == 1 / 7
    assert found["repeat_share"] == 2 / 7
    assert found["repeat_at_once_share"] == 1 / 7
    assert (found["tied_pairs"], found["tied_pairs_rising"]) == (1, 1.0)
    # b a, a b, b c
    assert (found["pairs"], found["pairs_rising"]) == (3, 2 / 3)
    assert found["events_quantiles"]["0%"] == 3
    assert found["events_quantiles"]["100%"] == 4
    assert found["users_with_events"] == {"200": 0, "500": 0, "1000": 0}
    assert (found["first_time"], found["days"]) == ("1970-01-01T00:00:00Z", 2.0)
    assert found["top_items_share"]["20%"] == 3 / 7
    assert found["items_below_events"] == {"5": 3, "20": 3}
    # targets: b at 5 (tied, seen in training) and c (never trained on)
    assert (found["train_events"], found["test_targets"]) == (3, 2)
    assert found["tied_target_share"] == 0.5
    assert found["cold_target_share"] == 0.5
    text = description.table(found)
    assert "2 repeat" not in text
    assert "warning: targets do not follow their history: 50.0%" in text


def test_a_clean_log_has_no_warnings(tmp_path):
    found = description.describe(made(tmp_path, random_log(), split="time"))
    assert found["warnings"] == []


def test_ties_sorted_by_item(tmp_path):
    rows = random_log()
    tied = [(u, i, t // 1000) for u, i, t in rows]
    assert not warned(description.describe(made(tmp_path, tied)), "sorted by item id")
    for sign in (1, -1):  # falling ids tell as much
        ordered = sorted(tied, key=lambda row: (row[0], row[2], sign * row[1]))
        found = description.describe(made(tmp_path, ordered))
        assert warned(found, "ties are sorted by item id")
        assert warned(found, "targets do not follow")


def test_an_order_that_leaks(tmp_path):
    rows = sorted(random_log(), key=lambda row: row[:2])
    rows = [(u, i, 10**9 + n) for n, (u, i, _) in enumerate(rows)]
    assert warned(description.describe(made(tmp_path, rows)), "order leaks the next item")


def test_time_travel(tmp_path):
    found = description.describe(made(tmp_path, random_log()))
    assert warned(found, "time travel")
    assert found["train_after_middle_target_share"] == pytest.approx(0.5, abs=0.03)
    found = description.describe(made(tmp_path, random_log(), split="time"))
    assert not warned(found, "time travel")


def test_duplicates_and_no_targets(tmp_path):
    rows = random_log(users=3, events=2)
    found = description.describe(made(tmp_path, rows + rows, holdout=3))
    assert warned(found, "6 of 12 rows repeat")
    assert warned(found, "no user has a test target")


def run(module, *arguments):
    command = [sys.executable, "-m", f"jaxrec.cli.{module}", *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def test_command_lines(tmp_path):
    pytest.importorskip("matplotlib")
    rows = random_log()
    columns = dict(zip(("user_id", "item_id", "timestamp"), zip(*rows, strict=True), strict=True))
    pl.DataFrame(columns).write_csv(tmp_path / "log.csv")
    common = (f"--config=configs/table.py:{tmp_path}/log.csv", f"--workdir={tmp_path}/run")
    done = run("prepare", *common)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["users"], found["events"]) == (40, 1200)
    output = tmp_path / "out" / "log.json"
    done = run("describe", *common, f"--output={output}")
    assert done.returncode == 0, done.stderr
    assert "data: reading" not in done.stderr  # it was prepared
    assert "events per user" in done.stdout
    described = json.loads(output.read_text())
    assert described["digest"] == found["digest"]
    assert described["command"].startswith("jaxrec describe --config=")
    assert output.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    done = run("describe", *common, "--output=x.txt")
    assert done.returncode == 2
    assert "--output=x.txt: the name must end in .json" in done.stderr
    done = run("prepare", *common, "--config.data.user_column=who")
    assert done.returncode == 2
    assert "column 'who' is missing" in done.stderr
    assert "Traceback" not in done.stderr
