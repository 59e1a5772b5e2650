"""Metrics file, progress, environment."""

import io
import json
import math
import re
import subprocess
import sys

import pytest

from jaxrec.runtime import environment, metrics_writer, progress
from jaxrec.runtime.metrics_writer import JsonLines
from jaxrec.runtime.progress import Progress


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_lines_are_on_disk_at_once_and_exact(tmp_path):
    out = JsonLines(tmp_path)
    out.write(1, {"train/loss": 0.1 + 0.2, "bad": math.nan})
    assert lines(tmp_path) == [{"step": 1, "train/loss": 0.1 + 0.2, "bad": None}]
    out.close()


def test_resuming_drops_later_lines(tmp_path):
    out = JsonLines(tmp_path)
    for step in (1, 2, 3):
        out.write(step, {"train/loss": 1.0 / step})
        out.write(step, {"validation/ndcg@10": step / 10})
    out.close()
    JsonLines(tmp_path, 2, validated=1).close()
    assert lines(tmp_path) == [
        {"step": 1, "train/loss": 1.0},
        {"step": 1, "validation/ndcg@10": 0.1},
        {"step": 2, "train/loss": 0.5},
    ]


def test_a_torn_last_line_is_dropped_a_torn_middle_one_reported(tmp_path, caplog):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "a": 1.0}\n{"step": 2, "a": 2.0}\n{"step": 3, "a"')
    JsonLines(tmp_path, 9).close()
    assert [row["step"] for row in lines(tmp_path)] == [1, 2]
    assert not caplog.text
    path.write_text('{"step": 1, "a": 1.0}\n{"st\n{"step": 3, "a": 3.0}\n')
    assert [row["step"] for row in metrics_writer.read_metrics(path)] == [1, 3]
    assert "line 2" in caplog.text


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_plain_lines(monkeypatch):
    now = iter([0.0, 10.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(now))
    stream = io.StringIO()
    bar = Progress(1000, 100, stream)
    bar.update(120)
    bar.log(120, 5.4321, 2.5)
    bar.close()
    assert stream.getvalue() == "step 120/1000  loss 5.4321  2.50 steps/s  7:20 left\n"


def test_a_bar_on_a_terminal():
    stream = Terminal()
    bar = Progress(10, 2, stream)
    bar.update(3)
    bar.log(3, 1.25, 2.0)
    bar.say("a line")
    bar.update(10)
    bar.close()
    text = stream.getvalue()
    assert "10/10" in text
    assert "loss 1.2500" in text
    assert "a line" in text


def test_a_bar_in_text_in_a_notebook_without_widgets(monkeypatch):
    """The warning that tqdm.auto gives there would be an error here."""
    kernel = type("OutStream", (io.StringIO,), {"__module__": "ipykernel.iostream"})
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    monkeypatch.setattr(progress.importlib.util, "find_spec", lambda name: None)
    stream = kernel()
    bar = Progress(10, 2, stream)
    bar.update(10)
    bar.log(10, 1.25, 2.0)
    bar.say("a line")
    bar.close()
    assert "10/10" in stream.getvalue()
    assert "a line" in stream.getvalue()
    monkeypatch.setattr(sys, "stderr", kernel())
    assert list(progress.track("ab", 2, "letters")) == ["a", "b"]
    assert "letters: 100%" in sys.stderr.getvalue()


def test_a_bar_of_widgets_in_a_notebook(monkeypatch):
    pytest.importorskip("ipywidgets")
    kernel = type("OutStream", (io.StringIO,), {"__module__": "ipykernel.iostream"})
    kind = progress._kind_of_bar(kernel())
    assert kind.__module__ == "tqdm.notebook"


def test_quiet_says_nothing():
    stream = Terminal()
    bar = Progress(10, 0, stream, quiet=True)
    bar.update(1)
    bar.log(1, 1.0, 1.0)
    bar.say("x")
    bar.close()
    assert stream.getvalue() == ""


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0:00"), (61, "1:01"), (3599.7, "1:00:00"), (7325, "2:02:05")]
)
def test_clock(seconds, text):
    assert progress.clock(seconds) == text


def test_environment_of_every_start(tmp_path):
    environment.record(tmp_path, 0)
    environment.record(tmp_path, 20)
    starts = json.loads((tmp_path / "environment.json").read_text())
    assert [start["step"] for start in starts] == [0, 20]
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", starts[0]["packages"]["jax"])
    assert starts[0]["device_count"] == 8
    assert starts[0]["devices"]["platform"] == "cpu"


def test_git_revision(tmp_path):
    assert environment.git_revision(tmp_path) is None

    def git(*arguments):
        identity = ("-c", "user.name=a", "-c", "user.email=a@b")
        subprocess.run(
            ["git", "-C", tmp_path, *identity, *arguments], check=True, capture_output=True
        )

    git("init")
    (tmp_path / "x").write_text("1")
    git("add", "x")
    git("commit", "-m", "x")
    revision = environment.git_revision(tmp_path)
    assert re.fullmatch("[0-9a-f]{40}", revision)
    (tmp_path / "x").write_text("2")
    assert environment.git_revision(tmp_path) == revision + "-dirty"


def test_runtime_imports_without_the_data_packages():
    """Accelerator images have no grain, tfds, polars, absl flags, ml_collections or tqdm."""
    program = (
        "import sys\n"
        "for name in ('grain', 'tensorflow_datasets', 'polars', 'array_record', 'ml_collections',"
        " 'tensorflow', 'tqdm', 'tensorboardX', 'wandb', 'mlflow'): sys.modules[name] = None\n"
        "import jaxrec.training.loop, jaxrec.runtime.checkpoint, jaxrec.runtime.environment\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
