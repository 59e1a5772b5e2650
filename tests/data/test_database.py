import numpy as np
import pytest

from jaxrec.data import database
from jaxrec.errors import DataError


def opened(folder, megabytes=100):
    return database.opened(folder, threads=2, megabytes=megabytes)


@pytest.mark.parametrize("name", ["plain", "it's", "one [1]", "a*b?c"])
def test_any_folder_holds_files(tmp_path, name):
    folder = tmp_path / name
    folder.mkdir()
    with opened(folder) as connection:
        for number in range(2):
            file = folder / f"{number}.parquet"
            query = f"COPY (SELECT {number} AS x) TO {database.text(file)} (FORMAT parquet)"
            connection.execute(query)
            assert connection.execute(f"FROM {database.parquet(file)}").fetchall() == [(number,)]
        both = database.parquet(folder, pattern="*.parquet")
        assert sorted(connection.execute(f"FROM {both}").fetchall()) == [(0,), (1,)]


def test_tables_beyond_the_memory_are_on_disk_and_removed(tmp_path):
    with opened(tmp_path, 20) as connection:
        query = "SELECT hash(range) AS x, range AS y FROM range(500_000) ORDER BY x, y"
        connection.execute(f"CREATE TABLE large AS {query}")
        assert sum(file.stat().st_size for file in tmp_path.rglob("*")) > 10**6
        x = connection.execute("SELECT x FROM large LIMIT 1000").fetchnumpy()["x"]
    assert (np.diff(x.astype(object)) >= 0).all()
    assert not [file for file in tmp_path.rglob("*") if file.is_file()]


def test_too_little_memory_names_the_key(tmp_path):
    query = "SELECT list(range ORDER BY hash(range)) FROM range(1_000_000)"
    match = r"data\.prepare_memory=20: 20 MB do not suffice .* Set it higher"
    with pytest.raises(DataError, match=match), opened(tmp_path, 20) as connection:
        connection.execute(query).fetchall()


def test_a_disk_that_cannot_be_written(tmp_path):
    gone = tmp_path / "gone" / "x.parquet"
    with pytest.raises(OSError, match="gone"), opened(tmp_path) as connection:
        connection.execute(f"COPY (SELECT 1 AS x) TO {database.text(gone)} (FORMAT parquet)")
