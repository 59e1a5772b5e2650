"""--help: every key, the recipe's values, and no jax before the answer."""

import re
import subprocess
import sys
import time

import pytest

from jaxrec.cli import flags
from jaxrec.cli.main import COMMANDS, run, usage
from jaxrec.config import Config
from jaxrec.config.option import options
from jaxrec.errors import ConfigError
from tests.integration import tiny

PROGRAMS = [
    ("train.py",),
    ("eval.py",),
    ("-m", "jaxrec.cli.prepare"),
    ("-m", "jaxrec.cli.describe"),
    ("-m", "jaxrec", "train"),
    ("-m", "jaxrec", "evaluate"),
]
KEYS = [key for key, _ in options(Config)]
SLOW = {"jax", "flax", "optax", "orbax", "grain", "tensorflow_datasets", "polars", "matplotlib"}
SECONDS = 3.0  # what a reader waits at most


def start(*arguments):
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=tiny.ROOT,
        env=tiny.environment() | {"PYTHONPATH": str(tiny.ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def lines(text):
    """(key, rest of the line) of every key, in order."""
    return re.findall(r"^[* ] --config\.([a-z][\w.]*)=(.*)$", text, re.MULTILINE)


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program[-1])
def test_help_answers_at_once(program):
    """All keys with a description, before jax or a data library is imported."""
    begin = time.monotonic()
    done = start("-X", "importtime", *program, "--help")
    seconds = time.monotonic() - begin
    assert done.returncode == 0, done.stderr
    assert "--workdir" in done.stdout
    assert [key for key, _ in lines(done.stdout)] == KEYS
    imported = set(re.findall(r"\|\s+(\w+)$", done.stderr, re.MULTILINE))
    assert "dataclasses" in imported
    assert not imported & SLOW
    assert seconds < SECONDS


def test_help_of_a_recipe_shows_its_values():
    done = start("train.py", "--config=configs/quickstart.py:full", "--help")
    assert done.returncode == 0, done.stderr
    shown = dict(lines(done.stdout))
    assert list(shown) == KEYS
    assert "in configs/quickstart.py:full" in done.stdout
    assert re.match(r"400 .*default 2000\]$", shown["train.steps"])
    assert re.match(r"'full' .*default 'compressed'\]$", shown["layout.mode"])
    assert "\n* --config.train.steps=400 " in done.stdout
    assert "\n  --config.train.batch_size=16 " in done.stdout
    assert "default" not in shown["train.batch_size"]


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("configs/quikstart.py", "not a Python file; there are"),
        ("configs/quickstart.py:fast", "config argument 'fast': allowed are compressed, full"),
        ("configs/bench_quick.py", "get_config returned a GridConfig, not a jaxrec Config"),
    ],
)
def test_help_of_a_wrong_recipe_is_one_line(recipe, message, capsys):
    assert run(["train", f"--config={recipe}", "--help"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.fullmatch(f"jaxrec train: error: .*{re.escape(message)}.*\n", captured.err)


def test_the_command_line_does_not_import_jax():
    done = start("-c", "import sys, jaxrec.cli.flags; print('jax' in sys.modules)")
    assert done.stdout == "False\n", done.stderr


def test_defaults_are_not_marked():
    text = flags.describe()
    assert "their defaults" in text
    assert "\n* " not in text
    assert "; default" not in text


def test_every_key_shows_what_is_allowed():
    shown = dict(lines(flags.describe()))
    for key, known in options(Config):
        assert known.description in shown[key]
        assert not known.allowed or f"[{known.allowed}]" in shown[key], key


@pytest.mark.parametrize(
    "arguments",
    [["--config", "a.py"], ["--config=b.py", "--config=a.py"], ["-config=a.py"]],
)
def test_the_last_recipe_counts(arguments):
    with pytest.raises(ConfigError, match=r"--config=a\.py: not a Python file"):
        flags.check_overrides(arguments)


LATER = ("savings", "serve", "tune")


@pytest.mark.parametrize("name", sorted({*COMMANDS} - {*LATER}))
def test_a_command_is_there_and_has_help(name, capsys):
    assert name in usage()
    assert run([name, "--help"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert f"jaxrec {name}" in captured.out
    assert "python -m" not in captured.out


def test_commands_answer_without_jax():
    """All of them in one process, which takes what a reader of one waits at most."""
    names = sorted({*COMMANDS} - {*LATER})
    calls = "; ".join(f"run([{name!r}, '--help'])" for name in names)
    done = start("-c", f"from jaxrec.cli.main import run; {calls}; import sys; print(*sys.modules)")
    assert done.returncode == 0, done.stderr
    assert not set(done.stdout.splitlines()[-1].split()) & SLOW
