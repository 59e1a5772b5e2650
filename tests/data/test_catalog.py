"""What serving knows of the data, written by training and read without data libraries."""

import subprocess
import sys

import numpy as np
import pytest

from jaxrec.data.catalog import FILE
from jaxrec.data.vocabulary import Vocabulary
from jaxrec.errors import DataError, WorkdirError
from jaxrec.runtime import checkpoint, workdir
from jaxrec.serving import Catalog, Recommender
from tests.serving import standin


@pytest.mark.parametrize("text", [False, True])
def test_it_comes_back(tmp_path, text):
    catalog = standin.catalog(text)
    catalog.save(tmp_path)
    again = Catalog.load(tmp_path)
    np.testing.assert_array_equal(again.vocabulary.ids, catalog.vocabulary.ids)
    np.testing.assert_array_equal(again.counts, catalog.counts)
    assert again.digest == catalog.digest
    assert again.text_users == text
    assert (again.raw(np.asarray([[0, 1]])) == [[catalog.no_item, catalog.vocabulary.ids[0]]]).all()


def test_missing_and_damaged_files_are_named(tmp_path):
    with pytest.raises(WorkdirError, match=r"catalog\.npz: missing\. Start the training command"):
        Catalog.load(tmp_path)
    standin.catalog().save(tmp_path)
    file = tmp_path / FILE
    content = bytearray(file.read_bytes())
    content[len(content) // 3] ^= 1
    file.write_bytes(content)
    with pytest.raises(WorkdirError, match=r"catalog\.npz: damaged"):
        Catalog.load(tmp_path)
    file.write_bytes(content[:100])
    with pytest.raises(WorkdirError, match=r"catalog\.npz: damaged"):
        Catalog.load(tmp_path)


def spoiled(file, **changes):
    """The file with other arrays and the checksums of its archive mended."""
    with np.load(file) as saved:
        np.savez(file, **{**saved, **changes})


def test_it_holds_what_was_written(tmp_path):
    """Permuted ids would recommend other items."""
    catalog = standin.catalog()
    for changes in (
        {"ids": catalog.vocabulary.ids[::-1].copy()},
        {"counts": catalog.counts + 1},
        {"time_origin": np.int64(catalog.time_origin + 1)},
        {"text_users": np.bool_(True)},
        {"digest": np.str_("0" * 32)},
    ):
        catalog.save(tmp_path)
        spoiled(tmp_path / FILE, **changes)
        with pytest.raises(
            WorkdirError, match=r"catalog\.npz: damaged: it is not what was written"
        ):
            Catalog.load(tmp_path)
    with np.load(tmp_path / FILE) as saved:
        older = {name: saved[name] for name in saved if name != "digest"}
    np.savez(tmp_path / FILE, **older)
    with pytest.raises(
        WorkdirError, match=r"catalog\.npz: of an earlier jaxrec\. Remove it and start"
    ):
        Catalog.load(tmp_path)


def test_it_is_the_runs(tmp_path):
    """A whole catalog of another run is refused where the run says what it was trained with."""
    catalog = standin.catalog()
    workdir.claim(tmp_path, standin.config(), {"vocabulary": catalog.vocabulary.digest})
    params = {"params": standin.params_of(standin.config())}
    checkpoint.save(tmp_path / "checkpoints", 3, params, {}, best=3)
    catalog.save(tmp_path)
    assert Recommender.load(tmp_path).step == 3
    ids = catalog.vocabulary.ids[::-1].copy()
    other = Catalog(Vocabulary(ids), catalog.counts, catalog.time_origin)
    other.save(tmp_path)
    digests = rf"{other.vocabulary.digest}, the run was trained with {catalog.vocabulary.digest}"
    with pytest.raises(WorkdirError, match=digests):
        Recommender.load(tmp_path)


def test_counts_must_fit_the_items():
    with pytest.raises(DataError, match=r"2 items need counts of shape \(3,\), found \(2,\)"):
        Catalog(Vocabulary(np.arange(2)), np.zeros(2, np.int64), 0)


def test_other_items_and_another_origin_are_another_catalog():
    base = standin.catalog()
    assert base.digest != standin.catalog(items=29).digest
    assert base.digest != Catalog(base.vocabulary, base.counts, base.time_origin + 1).digest


LEAN = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"grain", "tensorflow_datasets", "polars",
                                  "array_record", "ml_collections", "pandas"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocked())
from jaxrec.serving import Recommender
from jaxrec.serving.snapshot import Snapshot
rec = Recommender.load(sys.argv[1])
store = rec.create_store(sys.argv[2], num_shards=1)
rec.append(store, [1], [1000], [1600000000])
print(rec.recommend(store, [1, 2], k=2)[0].shape)
"""


def test_a_model_is_loaded_and_served_without_data_libraries(tmp_path):
    from jaxrec import config as config_lib

    settings = standin.config()
    (tmp_path / "config.json").write_text(config_lib.to_json(settings))
    standin.catalog().save(tmp_path)
    params = {"params": standin.params_of(settings)}
    checkpoint.save(tmp_path / "checkpoints", 3, params, {}, best=3)
    done = subprocess.run(
        [sys.executable, "-c", LEAN, str(tmp_path), str(tmp_path / "states")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "(2, 2)"
