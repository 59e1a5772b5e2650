"""Files that are replaced are replaced as a whole."""

import contextlib
import importlib.util
import os
import pathlib
import resource
from types import SimpleNamespace

import pytest

from jaxrec.benchmark import timing
from jaxrec.runtime import workdir

LARGE = "x" * 100_000


@contextlib.contextmanager
def full_disk():
    """No file may grow beyond 4 KiB, as on a disk that fills up in the middle of a file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def assert_kept(folder, write):
    """A write that fails leaves the old file and no other."""
    (folder / "results.json").write_text("old")
    with full_disk(), pytest.raises(OSError, match="File too large"):
        write(folder / "results.json")
    assert {path.name: path.read_text() for path in folder.iterdir()} == {"results.json": "old"}


def test_a_failing_write_leaves_the_old_file(tmp_path):
    assert_kept(tmp_path, lambda file: workdir.write_text(file, LARGE))


def test_a_failing_benchmark_report_leaves_the_old_one(tmp_path):
    assert_kept(tmp_path, lambda file: timing.save({"rows": LARGE}, str(file)))


def test_a_failing_evaluation_leaves_the_old_results(tmp_path, monkeypatch):
    file = pathlib.Path(__file__).parents[2] / "eval.py"
    spec = importlib.util.spec_from_file_location("evaluation_command", file)
    command = importlib.util.module_from_spec(spec)
    monkeypatch.setattr("absl.flags.DEFINE_string", lambda *args: None)
    spec.loader.exec_module(command)
    session = SimpleNamespace(digests={}, evaluate=lambda say: {"rows": LARGE})
    monkeypatch.setattr(command, "Session", lambda config, folder: session)
    monkeypatch.setattr(command, "validate", lambda config: config)
    monkeypatch.setattr(command.evaluator, "chosen", lambda *args: None)
    for name in ("check", "check_data"):
        monkeypatch.setattr(workdir, name, lambda *args: None)
    config = SimpleNamespace(eval=SimpleNamespace(full_workdir=""))
    assert_kept(
        tmp_path,
        lambda file: command.main(
            SimpleNamespace(config=config, workdir=str(tmp_path), output=str(file))
        ),
    )


def test_links_and_devices_stay(tmp_path):
    (tmp_path / "target").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    workdir.write_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_text() == "new"
    workdir.write_text(pathlib.Path(os.devnull), "gone")
    assert not pathlib.Path(os.devnull).is_file()
