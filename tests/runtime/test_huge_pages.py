"""Huge pages: a program starts again with them, once, where the system leaves it to programs."""

import os
import pathlib
import subprocess
import sys

import pytest

from jaxrec.runtime import huge_pages
from jaxrec.runtime.huge_pages import TUNABLE, VARIABLE, asked_for, switched_on, useful

ROOT = pathlib.Path(__file__).parents[2]
PROGRAM = """
import os, sys
from jaxrec.runtime import huge_pages
huge_pages.useful = lambda: {useful}
print(os.getpid(), flush=True)
huge_pages.start_again()
print(sys.argv[1:], os.environ.get("GLIBC_TUNABLES"))
"""


def started(tmp_path, *arguments, useful=True, given=None, program=None):
    """Lines of a program that starts again where huge pages are `useful`.

    program: what Python is told to run, with the file as its input; default: the file.
    """
    path = tmp_path / "program.py"
    path.write_text(PROGRAM.format(useful=useful))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop(VARIABLE, None)
    if given is not None:
        environment[VARIABLE] = given
    command = [sys.executable, "-W", "ignore", program or str(path), *arguments]
    with path.open() as file:
        done = subprocess.run(
            command, env=environment, stdin=file, capture_output=True, text=True, check=True
        )
    return done.stdout.splitlines()


def test_a_program_starts_again_as_the_same_process(tmp_path):
    first, second, last = started(tmp_path, "--a=b c", "d")
    assert first == second  # the number of the process
    assert last == f"['--a=b c', 'd'] {TUNABLE}=1"


def test_what_was_tuned_stays(tmp_path):
    *_, last = started(tmp_path, given="glibc.malloc.arena_max=1")
    assert last == f"[] glibc.malloc.arena_max=1:{TUNABLE}=1"


def test_nothing_happens_where_it_is_decided(tmp_path):
    assert len(started(tmp_path, given=f"{TUNABLE}=0")) == 2
    assert started(tmp_path, useful=False)[1] == "[] None"


@pytest.mark.parametrize("program", ["-", "/dev/stdin"])
def test_a_program_that_cannot_be_read_again_is_left_alone(program, tmp_path):
    assert started(tmp_path, program=program)[1] == "[] None"


@pytest.mark.parametrize(
    ("modes", "library", "answer"),
    [
        ("always [madvise] never", "glibc 2.35", True),
        ("always [madvise] never", "glibc 2.36-9", True),
        ("always [madvise] never", "glibc 2.34", False),
        ("always [madvise] never", "musl", False),
        ("always [madvise] never", None, False),
        ("[always] madvise never", "glibc 2.36", False),
        ("always madvise [never]", "glibc 2.36", False),
    ],
)
def test_where_huge_pages_are_useful(modes, library, answer, tmp_path, monkeypatch):
    enabled = tmp_path / "enabled"
    enabled.write_text(modes + "\n")
    monkeypatch.setattr(huge_pages.os, "confstr", lambda name: library)
    assert useful(enabled) is answer


def test_other_systems_have_no_such_file(tmp_path):
    assert not useful(tmp_path / "enabled")


@pytest.mark.parametrize(
    ("tunables", "decided", "on"),
    [
        (None, False, False),
        ("glibc.malloc.arena_max=1", False, False),
        (f"glibc.malloc.arena_max=1:{TUNABLE}=2", True, True),
        (f"{TUNABLE}=1", True, True),
        (f"{TUNABLE}=0", True, False),
    ],
)
def test_who_decided(tunables, decided, on):
    environ = {} if tunables is None else {VARIABLE: tunables}
    assert asked_for(environ) is decided
    assert switched_on(environ) is on
