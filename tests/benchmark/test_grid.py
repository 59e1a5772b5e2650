"""The benchmark's grid at tiny size: every figure is there, errors are rows, runs continue."""

import json
import sys

import jax.numpy as jnp
import pytest

from jaxrec.benchmark import __main__ as command
from jaxrec.benchmark import grid, grid_config, grid_methods
from jaxrec.errors import ConfigError
from jaxrec.model import cost

TINY = """--config.shapes=((20,5),) --config.catalog=50 --config.seconds=0.01 --config.rounds=3
--config.model.width=8 --config.model.heads=2 --config.model.layers=2 --config.train_batch=2
--config.local_window=6 --config.local_prefix=2 --config.loss.negatives=4"""


def run(monkeypatch, folder, *more):
    argv = ["x", "--config=configs/bench_quick.py", f"--output={folder}", *TINY.split(), *more]
    monkeypatch.setattr(sys, "argv", argv)
    command.main()
    return json.loads((folder / "rows.json").read_text())


QUICK = ("full", "recent", "compressed", "compressed_int8")


# all methods compile fifteen programs
@pytest.mark.parametrize(
    "methods", [QUICK, pytest.param(grid_config.METHODS, marks=pytest.mark.slow)]
)
def test_every_figure_and_a_second_run_measures_nothing(tmp_path, monkeypatch, methods):
    chosen = f"--config.methods={methods!r}"
    rows = run(monkeypatch, tmp_path, chosen)
    assert [row["method"] for row in rows] == list(methods)
    for row in rows:
        assert (row["status"], row["error"]) == ("ok", "")
        assert 0 < row["p50_ms"] <= row["p90_ms"] <= row["p99_ms"]
        for name in ("flops_analytic", "flops_xla", "peak_bytes", "state_bytes", "train_step_ms"):
            assert row[name] > 0, (row["method"], name)
        assert row["users_per_s"] == pytest.approx(1e3 / row["p50_ms"])
    by = {row["method"]: row for row in rows}
    assert by["recent"]["flops_analytic"] < by["compressed"]["flops_analytic"]
    assert by["compressed"]["flops_analytic"] < by["full"]["flops_analytic"]
    assert by["compressed_int8"]["state_bytes"] < by["compressed"]["state_bytes"]
    assert "## 20 events, 5 segments of 4, batch 1" in (tmp_path / "report.md").read_text()
    facts = json.loads((tmp_path / "report.json").read_text())
    assert "input transfer" in facts["timing"]
    assert facts["command"].startswith("python -m jaxrec.benchmark --config=")

    def never(*args):
        raise AssertionError("measured again")

    monkeypatch.setattr(grid, "measure", never)
    assert run(monkeypatch, tmp_path, chosen) == rows
    with pytest.raises(AssertionError, match="again"):  # other settings are other cells
        run(monkeypatch, tmp_path, chosen, "--config.model.layers=3")


def test_a_request_at_the_papers_shape_needs_24_percent_of_the_flops():
    config, shape = grid_config.GridConfig(), grid_methods.Shape(1000, 5)
    full, compressed = (
        grid_methods.model_of(config, method, shape, 4) for method in ("full", "compressed")
    )
    whole = cost.forward_flops(config.model, full.layout)
    assert cost.forward_flops(config.model, compressed.layout.request()) < 0.24 * whole


def test_errors_are_rows(tmp_path, monkeypatch):
    def request(config, method, shape, tokens, batch):
        raise RuntimeError("RESOURCE_EXHAUSTED: no room" if method == "full" else "odd")

    monkeypatch.setattr(grid, "request", request)
    more = "--config.methods=('full','recent')", "--config.train_longest=0"
    full, recent = run(monkeypatch, tmp_path, *more)
    assert (full["status"], recent["status"]) == ("out_of_memory", "failed")
    assert "RESOURCE_EXHAUSTED: no room" in full["error"]
    assert full["p50_ms"] is None


def test_what_fails_while_timed_drops_out():
    def broken():
        raise MemoryError("gone")

    samples, errors = grid.in_turn({"a": lambda: jnp.ones(2), "b": broken}, 0.0, 9)
    assert len(samples["a"]) == 3
    assert grid.status_of(errors["b"]) == "out_of_memory"


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--config.shapes=((10,3),)", "equal segments"),
        ("--config.methods=('recent',)", "no 'full'"),
        ("--config.methods=('full','x')", "known are"),
        ("--config.batches=(3,)", "serving compiles"),
        ("--config.tokens=4", "a tuple is needed"),
        ("--config.nothing=4", "unknown config key nothing"),
        ("--nothing", "overrides are"),
        ("--config.model.state=embedding", "compressed_embedding"),
        ("--config.rounds=2", "3 at least"),
    ],
)
def test_wrong_settings_are_refused(argument, message):
    with pytest.raises(ConfigError, match=message):
        grid_config.load("configs/bench_quick.py", [argument])


def test_wrong_files_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="not a Python file"):
        grid_config.load(str(tmp_path / "x.py"))
    (tmp_path / "x.py").write_text("")
    with pytest.raises(ConfigError, match="get_config"):
        grid_config.load(str(tmp_path / "x.py"))
