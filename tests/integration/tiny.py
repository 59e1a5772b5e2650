"""The real commands on a tiny data set, as a user would start them."""

import contextlib
import importlib
import io
import os
import pathlib
import subprocess
import sys

from jaxrec.runtime.program import exit_status

ROOT = pathlib.Path(__file__).parents[2]

DATA = [
    "--config.data.synthetic.users=24",
    "--config.data.synthetic.items=60",
    "--config.data.synthetic.events=40",
    "--config.data.synthetic.gap=12",
    "--config.data.holdout=2",
    "--config.data.workers=0",
]
MODEL = [
    "--config.layout.segment_size=6",
    "--config.layout.tokens=2",
    "--config.layout.max_segments=3",
    "--config.model.width=8",
    "--config.model.layers=1",
    "--config.model.token_input=parts",
    "--config.model.token_distance=True",
    "--config.model.heads=2",
    "--config.model.repeat_half_lives=(4.0, 0.0)",
    "--config.model.repeat_half_times=(60.0,)",
    "--config.loss.kind=sampled_softmax",
    "--config.loss.negatives=8",
]
RUN = [
    "--config.train.steps=16",
    "--config.train.batch_size=4",
    "--config.train.log_every=1",
    "--config.train.eval_every=8",
    "--config.train.checkpoint_every=4",
    "--config.eval.bootstrap=20",
    "--config.eval.batch_size=8",
    "--config.mesh.data=1",  # of the devices that tests have
]
TINY = [*DATA, *MODEL, *RUN]


def arguments(workdir, *more, mode="compressed", config="configs/synthetic.py"):
    return [f"--config={config}:{mode}", f"--workdir={workdir}", *TINY, *more]


def environment():
    """One device, as on a laptop; compiled code is shared between the runs of a test."""
    keep = {k: v for k, v in os.environ.items() if not k.startswith("JAX_NUM_")}
    return keep | {"JAX_PLATFORMS": "cpu"}


def start(program, *argv):
    return subprocess.Popen(
        [sys.executable, program, *argv],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def call(command, *argv):
    """(exit status, standard output, standard error) of a `jaxrec` command in this process."""
    main = importlib.import_module(f"jaxrec.cli.{command}").main
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = exit_status(f"jaxrec {command}", main, argv)
    return status, out.getvalue(), err.getvalue()


def run(program, *argv):
    """(standard output, standard error) of a command that must succeed."""
    process = start(program, *argv)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    return out, err
