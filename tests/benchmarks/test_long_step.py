"""The benchmark of long training steps, on sizes that take no time."""

import dataclasses
import json

import jax
import pytest

from benchmarks import long_step

SMALL = (
    "long_step --segment 4 --tokens 2 --segments 2 --batch 2 --width 16 --layers 2 --heads 2 "
    "--catalog 50 --negatives 8 --repeats 1"
)


def test_backends_agree(tmp_path, capsys, monkeypatch):
    output = tmp_path / "long_step.json"
    monkeypatch.setattr("sys.argv", [*SMALL.split(), f"--output={output}"])
    long_step.main()
    printed = capsys.readouterr().out
    record = json.loads(output.read_text())
    assert [row["backend"] for row in record["rows"]] == list(long_step.BACKENDS)
    for row in record["rows"]:
        assert row["positions"] == 2 * (2 * (4 + 2) + 4)
        assert row["share_of_peak"] is None  # of a CPU
        assert f"{row['backend']}: " in printed
    assert record["settings"]["width"] == 16


def test_backends_that_differ_are_no_result(monkeypatch):
    of = long_step.model_of

    def other(args, backend, loss):
        temperature = 0.5 if backend == "dense" else loss.temperature
        return of(args, backend, dataclasses.replace(loss, temperature=temperature))

    monkeypatch.setattr(long_step, "model_of", other)
    monkeypatch.setattr("sys.argv", SMALL.split())
    with pytest.raises(ValueError, match="losses differ"):
        long_step.main()


def test_steps_that_do_not_fit_are_named(monkeypatch, capsys):
    def too_large(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")

    monkeypatch.setattr(long_step, "make_step", lambda *_: too_large)
    monkeypatch.setattr("sys.argv", SMALL.split())
    with pytest.raises(ValueError, match="no backend's step fits the device"):
        long_step.main()
    said = [line for line in capsys.readouterr().out.splitlines() if "fit" in line]
    assert said == [f"{name}: does not fit the device" for name in long_step.BACKENDS]
