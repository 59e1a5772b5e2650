"""Files of recipes and their arguments."""

import re
import subprocess
import sys

import pytest

from jaxrec.config import Config, load_recipe, recipe_argument
from jaxrec.errors import ConfigError

COMMAND = """
import sys
from jaxrec.cli import train
from jaxrec.runtime.program import exit_status
sys.exit(exit_status("train.py", train.main))
"""


def test_an_empty_argument_is_the_first_one():
    assert recipe_argument("", ("full", "recent")) == "full"
    assert recipe_argument("recent", ("full", "recent")) == "recent"


def test_other_arguments_are_refused():
    with pytest.raises(ConfigError, match="config argument 'x': allowed are full, recent"):
        recipe_argument("x", ("full", "recent"))


def test_a_recipe_is_read_with_its_argument(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from jaxrec.config import Config\n"
        "def get_config(path='none'):\n"
        "    config = Config()\n"
        "    config.data.path = path\n"
        "    return config\n"
    )
    assert isinstance(load_recipe(str(file)), Config)
    assert load_recipe(str(file)).data.path == "none"
    assert load_recipe(f"{file}:a:b.csv").data.path == "a:b.csv"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("value = 1\n", r"mine\.py: the file has no function get_config\(\)"),
        ("1 / 0\n", r"mine\.py: ZeroDivisionError: division by zero"),
        ("def get_config(:\n", r"mine\.py: SyntaxError"),
        ("def get_config(a, b):\n    return 1\n", r"mine\.py: TypeError: .*missing"),
    ],
)
def test_a_recipe_that_cannot_be_read_is_named(tmp_path, text, message):
    file = tmp_path / "mine.py"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_recipe(str(file))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("config.model.dim = 16", r"unknown config key model\.dim: known are .*width"),
        ("config.model.hstu.layer = 1", r"unknown config key model\.hstu\.layer: known are "),
        ("config.trian = 1", r"unknown config key trian: known are .*Did you mean train\?"),
        ("config.train.step = 1", r"train\.step: known are .*Did you mean train\.steps\?"),
        ("config.data.synthetic.user = 3", r"data\.synthetic\.user: .* data\.synthetic\.users\?"),
        ("config.eval.k = (1,)", r"unknown config key eval\.k: known"),
    ],
)
def test_an_unknown_key_in_a_recipe_is_refused(tmp_path, line, message):
    file = tmp_path / "mine.py"
    file.write_text(
        f"from jaxrec.config import Config\ndef get_config():\n    config = Config()\n    {line}\n"
        "    return config\n"
    )
    with pytest.raises(ConfigError, match=message):
        load_recipe(str(file))
    argv = [f"--config={file}", f"--workdir={tmp_path}"]
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, *argv], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert re.search(message, done.stderr)
    assert "Traceback" not in done.stderr


def test_a_name_without_folder_lists_the_recipes_of_configs(tmp_path, monkeypatch):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "mine.py").write_text("")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"mine: not a Python file; there are configs/mine\.py$"):
        load_recipe("mine")


def test_a_missing_recipe_lists_those_beside_it(tmp_path):
    (tmp_path / "mine.py").write_text("")
    (tmp_path / "_hidden.py").write_text("")
    with pytest.raises(ConfigError, match=r"yours\.py: not a Python file; there are .*mine\.py$"):
        load_recipe(str(tmp_path / "yours.py"))
