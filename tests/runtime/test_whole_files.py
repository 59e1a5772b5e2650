"""Files that are replaced are replaced as a whole."""

import contextlib
import os
import pathlib
import resource

import numpy as np
import pytest

from jaxrec.benchmark import timing
from jaxrec.cli import results
from jaxrec.data.catalog import Catalog
from jaxrec.data.vocabulary import Vocabulary
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


def test_failing_arrays_leave_the_old_file(tmp_path):
    def write(file):
        with workdir.replacing(file) as stream:
            np.savez(stream, x=np.arange(100_000))

    assert_kept(tmp_path, write)
    write(tmp_path / "results.json")
    with np.load(tmp_path / "results.json") as saved:
        assert saved["x"].sum() == 4999950000
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def test_an_interrupted_write_leaves_the_old_file(tmp_path):
    file = tmp_path / "x"
    file.write_text("old")

    def interrupted():
        with workdir.replacing(file) as stream:
            stream.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert file.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_failing_catalog_leaves_the_old_one(tmp_path):
    ids = np.arange(10_000)
    catalog = Catalog(Vocabulary(ids), np.ones(10_001, np.int64), 0)
    catalog.save(tmp_path)
    with full_disk(), pytest.raises(OSError, match="File too large"):
        catalog.save(tmp_path)
    assert Catalog.load(tmp_path).content_digest == catalog.content_digest
    assert [path.name for path in tmp_path.iterdir()] == ["catalog.npz"]


def test_a_failing_benchmark_report_leaves_the_old_one(tmp_path):
    assert_kept(tmp_path, lambda file: timing.save({"rows": LARGE}, str(file)))


def test_a_failing_evaluation_leaves_the_old_results(tmp_path, monkeypatch):
    monkeypatch.setattr(results.terminal, "format_table", lambda *args, **kwargs: "")
    monkeypatch.setattr(results.rank_file, "save", lambda *args: None)
    made = results.Evaluation({"rows": LARGE}, {}, {})
    assert_kept(tmp_path, lambda file: results.write(made, tmp_path, pathlib.Path(file)))


def test_links_and_devices_stay(tmp_path):
    (tmp_path / "target").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    workdir.write_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_text() == "new"
    workdir.write_text(pathlib.Path(os.devnull), "gone")
    assert not pathlib.Path(os.devnull).is_file()
