"""Real processes, really killed."""

import os
import signal
import subprocess
import sys

from jaxrec.runtime import checkpoint
from tests.training import standin
from tests.training.test_loop import assert_same_run


def train(folder, fault="none", step=0):
    """The stand-in in a process of its own: (exit status, what it printed, its messages)."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.training.standin", str(folder), fault, str(step)],
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout.strip(), done.stderr


def saved(folder):
    return checkpoint.steps(folder / "checkpoints")


def test_killed_and_terminated_and_started_with_the_same_command(tmp_path):
    run = tmp_path / "run"

    status, _, errors = train(run, "batch-SIGKILL", 9)
    assert status == -signal.SIGKILL, errors
    assert saved(run)[-1] == 8

    status, _, errors = train(run, "save-SIGKILL", 12)
    assert status == -signal.SIGKILL, errors
    assert "continuing from step 8" in errors
    assert saved(run)[-1] == 8
    assert (run / "checkpoints" / "12.new").is_dir()

    status, printed, errors = train(run, "evaluate-SIGTERM", 16)
    assert (status, printed) == (0, "preempted 16"), errors
    assert saved(run)[-1] == 16

    status, printed, errors = train(run, "batch-SIGTERM", 20)
    assert (status, printed) == (0, "preempted 21"), errors
    assert saved(run)[-1] == 21

    status, printed, errors = train(run)
    assert (status, printed) == (0, "finished 24"), errors
    standin.fit(tmp_path / "whole")
    assert_same_run(run, tmp_path / "whole")
