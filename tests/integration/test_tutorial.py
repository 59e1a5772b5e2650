"""The tutorial runs, block by block, as a reader would run it."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
BLOCK = re.compile(r"^```(python|bash)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks(page):
    return BLOCK.findall((ROOT / "docs" / page).read_text())


def run(language, text, folder):
    """Standard output of a block; it must succeed."""
    command = ["bash", "-euo", "pipefail", "-c"] if language == "bash" else [sys.executable, "-c"]
    path = f"{pathlib.Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [*command, text], cwd=folder, env=environment, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_blocks_of_the_tutorial_are_found():
    languages = [language for language, _ in blocks("tutorial.md")]
    assert languages == ["python", "bash", "bash", "bash", "bash", "bash"]


@pytest.mark.slow
def test_the_tutorial_runs(tmp_path):
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    printed = [run(language, text, tmp_path) for language, text in blocks("tutorial.md")]
    _, described, trained, listed, saved, served = printed
    assert "layout.segment_size" in described
    assert "NDCG@10" in trained
    lines = listed.splitlines()
    assert lines[-4].startswith("household_id,") or "item" in lines[-4]
    assert saved.startswith("Cannot tell: ")
    assert (tmp_path / "runs/savings/index.html").is_file()
    assert '"known":true' in served.replace(" ", "")
    assert '"events":1' in served.replace(" ", "")
