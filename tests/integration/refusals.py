"""Starts a program's main with one wrong command line after the other; prints what it said.

Run as `python refusals.py COMMAND` with a JSON list of argument lists on standard input; each
runs in a forked child, because importing jax every time is what takes long.
"""

import importlib
import json
import os
import sys
import tempfile
import warnings

from jaxrec.cli import training  # noqa: F401  (so that no child imports jax)
from jaxrec.runtime.program import exit_status

command = importlib.import_module(f"jaxrec.cli.{sys.argv[1]}")
results = []
for argv in json.load(sys.stdin):
    with tempfile.TemporaryFile("w+") as output:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # nothing runs in jax's threads yet
            child = os.fork()
        if not child:
            os.dup2(output.fileno(), 2)
            sys.exit(exit_status(f"jaxrec {sys.argv[1]}", command.main, argv))
        _, status = os.waitpid(child, 0)
        output.seek(0)
        results.append([os.waitstatus_to_exitcode(status), output.read()])
json.dump(results, sys.stdout)
