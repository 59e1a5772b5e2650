"""Programs that load the TPU's compiler, each in a process of its own.

libtpu does not leave a process as it was: the profiler of later tests would not start.
"""

import importlib.util
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]

needed = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs jaxrec[tpu-aot]"
)


def run(module, *arguments):
    """What `python -m module` prints; fails when the program does."""
    path = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        env={
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            # programs for devices that are not there cannot be read from the cache again
            "JAX_ENABLE_COMPILATION_CACHE": "false",
            "XLA_FLAGS": "",  # those of the tests are not known to libtpu
            "PYTHONPATH": os.pathsep.join(path),
        },
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout
