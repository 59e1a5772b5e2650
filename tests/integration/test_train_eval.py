"""train.py and eval.py for real: killed, stopped, continued, evaluated."""

import json
import signal
import time

import pytest

from tests.integration import tiny

BRIEF = "--config.eval.mode=popularity"  # where nobody looks at the results of a training


def trace(workdir):
    """step -> everything logged that is not a rate."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    kept = ("train/loss", "train/grad_norm", "train/learning_rate", "validation/")
    steps = {}
    for line in lines:
        values = {k: v for k, v in line.items() if k.startswith(kept)}
        steps.setdefault(line["step"], {}).update(values)
    return steps


def wait_for_step(process, workdir, step):
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        file = workdir / "metrics.jsonl"
        if file.exists() and f'"step": {step},' in file.read_text():
            return
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)
    raise AssertionError(f"step {step} was not reached")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def shared(folder):
    """Data that all runs of this file share."""
    return [f"--config.data.cache_dir={folder / 'data'}"]


@pytest.fixture(scope="module")
def whole(folder, shared):
    """A run from the first to the last step."""
    workdir = folder / "whole"
    out, err = tiny.run("train.py", *tiny.arguments(workdir, *shared))
    return workdir, out, err


def test_a_run_ends_with_the_table(whole):
    workdir, out, err = whole
    assert "step 16/16" in err
    assert " left" in err
    result = json.loads((workdir / "results.json").read_text())
    names = [row["name"] for row in result["rows"]]
    assert names[:3] == ["compressed", "masked", "without-tokens"]
    assert all((f"\n{name} " in out) == (name != "masked") for name in names)
    assert out.splitlines()[0].startswith("compressed: NDCG@10 0.")
    assert f"{workdir / 'results.json'}\n\nrow " in out
    assert "left out: masked (as compressed)" in out
    assert result["paths"]["score_difference"] <= 1e-5
    assert {"config.json", "environment.json", "dataset.json", "checkpoints"} <= {
        path.name for path in workdir.iterdir()
    }
    assert sorted(trace(workdir)) == list(range(1, 17))


def test_sigkill_then_the_same_command_gives_the_same_run(whole, folder, shared):
    """Losses, gradients, schedule and validation of every step, bit for bit."""
    workdir = folder / "killed"
    command = tiny.arguments(workdir, *shared)
    process = tiny.start("train.py", *command)
    wait_for_step(process, workdir, 6)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    tiny.run("train.py", *command)
    assert trace(workdir) == trace(whole[0])
    ours, theirs = (json.loads((w / "results.json").read_text()) for w in (workdir, whole[0]))
    assert ours == theirs


def test_sigterm_saves_and_exits_0(whole, folder, shared):
    workdir = folder / "stopped"
    command = tiny.arguments(workdir, *shared, BRIEF)
    process = tiny.start("train.py", *command)
    wait_for_step(process, workdir, 5)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert "the same command continues the run" in err
    saved = [int(path.name) for path in (workdir / "checkpoints").rglob("*") if path.name.isdigit()]
    assert max(saved) >= 5
    tiny.run("train.py", *command)  # also makes up for a validation that the signal put off
    assert trace(workdir) == trace(whole[0])


def test_a_finished_run_is_evaluated_not_trained_again(whole, folder, shared):
    workdir, _, _ = whole
    before = (workdir / "metrics.jsonl").read_text()
    status, _, err = tiny.call("train", *tiny.arguments(workdir, *shared))
    assert status == 0, err
    assert (workdir / "metrics.jsonl").read_text() == before


@pytest.mark.slow
def test_evaluation_beside_models_of_full_and_recent_history(whole, folder, shared):
    workdir, _, _ = whole
    full, recent = folder / "full", folder / "recent"
    for other, mode in ((full, "full"), (recent, "recent")):
        status, _, err = tiny.call("train", *tiny.arguments(other, *shared, BRIEF, mode=mode))
        assert status == 0, err
    output = folder / "figures" / "table.json"
    out, _ = tiny.run(
        "eval.py",
        *tiny.arguments(workdir, *shared),
        "--config.eval.mode=compressed,recent,full,popularity",
        f"--config.eval.full_workdir={full}",
        f"--config.eval.recent_workdir={recent}",
        f"--output={output}",
    )
    result = json.loads(output.read_text())
    names = ["compressed", "recent", "full", "popularity"]
    assert [row["name"] for row in result["rows"]] == names
    assert "gap closed, ndcg@10: " in out
    assert "compressed / full" in out
    assert result["command"].startswith("jaxrec evaluate ")
    ours = json.loads((workdir / "results.json").read_text())["rows"][0]
    assert result["rows"][0]["metrics"] == ours["metrics"]
