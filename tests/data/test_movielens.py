"""Tiny files in the published formats; the download runs against a server on this machine."""

import hashlib
import http.server
import threading
import zipfile

import pytest

from jaxrec.config import DataConfig
from jaxrec.data.datasets import movielens
from jaxrec.data.digests import read_digest
from jaxrec.errors import DataError
from tests.data import source

RATINGS = [(1, 10, 4, 50), (1, 20, 5, 40), (2, 10, 3, 60)]
CSV_RATINGS = "userId,movieId,rating,timestamp\n" + "".join(
    f"{u},{m},{r}.5,{t}\n" for u, m, r, t in RATINGS
)
CSV_MOVIES = 'movieId,title,genres\n10,"Toy, The (1982)",Comedy|Drama\n20,Heat (1995),Crime\n'
FLAGS_COMEDY, FLAGS_DRAMA_WAR = (
    "|".join("1" if i in on else "0" for i in range(19)) for on in ({5}, {8, 17})
)
FILES = {
    "latest-small": {"ratings.csv": CSV_RATINGS, "movies.csv": CSV_MOVIES},
    "20m": {"ratings.csv": CSV_RATINGS, "movies.csv": CSV_MOVIES},
    "25m": {"ratings.csv": CSV_RATINGS, "movies.csv": CSV_MOVIES},
    "32m": {"ratings.csv": CSV_RATINGS, "movies.csv": CSV_MOVIES},
    "10m": {
        "ratings.dat": "".join(f"{u}::{m}::{r}.5::{t}\n" for u, m, r, t in RATINGS),
        "movies.dat": "10::Café: The Movie (1982)::Comedy|Drama\n20::Heat (1995)::Crime\n",
    },
    "1m": {
        "ratings.dat": "".join("::".join(map(str, row)) + "\n" for row in RATINGS),
        "movies.dat": "10::Café: The Movie (1982)::Comedy|Drama\n20::Heat (1995)::Crime\n",
    },
    "100k": {
        "u.data": "".join("\t".join(map(str, row)) + "\n" for row in RATINGS),
        "u.item": f"10|Café (1982)|01-Jan-1982||http://x|{FLAGS_COMEDY}\n"
        f"20|Heat (1995)|01-Jan-1995||http://y|{FLAGS_DRAMA_WAR}\n",
    },
}


def make_zip(path, variant):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in FILES[variant].items():
            layout = movielens.VARIANTS[variant]
            archive.writestr(f"{layout.folder}/{name}", text.encode(layout.encoding))
    return path


def read(variant, path, downloads=None):
    config = DataConfig(dataset="movielens", variant=variant, path=str(path))
    return source.read(config, downloads or path.parent / "downloads")


@pytest.mark.parametrize("variant", FILES)
def test_reads_every_variant(variant, tmp_path):
    events, texts = read(variant, make_zip(tmp_path / "ml.zip", variant))
    assert events.user.tolist() == [1, 1, 2]
    assert events.item.tolist() == [10, 20, 10]
    assert events.time.tolist() == [50, 40, 60]
    assert texts["item"].to_list() == [10, 20]
    assert texts["title"][1] == "Heat (1995)"
    genres = texts["genres"].to_list()
    assert list((tmp_path / "downloads").iterdir()) == []
    assert genres == (["Comedy", "Drama, War"] if variant == "100k" else ["Comedy, Drama", "Crime"])


def test_titles_keep_their_letters(tmp_path):
    titles = {
        "1m": "Café: The Movie (1982)",
        "100k": "Café (1982)",
        "10m": "Café: The Movie (1982)",
        "20m": "Toy, The (1982)",
    }
    for variant, title in titles.items():
        _, texts = read(variant, make_zip(tmp_path / f"{variant}.zip", variant))
        assert texts["title"][0] == title


def test_extracted_folder_and_the_one_above(tmp_path):
    with zipfile.ZipFile(make_zip(tmp_path / "ml.zip", "1m")) as archive:
        archive.extractall(tmp_path)
    for path in (tmp_path, tmp_path / "ml-1m"):
        assert len(read("1m", path)[0]) == 3
        config = DataConfig(dataset="movielens", variant="1m", path=str(path))
        assert len(movielens.fingerprint(config, read_digest)["files"]) == 2


def test_wrong_inputs(tmp_path):
    file = make_zip(tmp_path / "ml.zip", "1m")
    with pytest.raises(DataError, match=r"data\.variant='5m': allowed are latest-small, 100k"):
        read("5m", file)
    with pytest.raises(DataError, match=r"ml\.zip: there is no ratings\.csv in it, but: ml-1m/"):
        read("20m", file)
    with pytest.raises(DataError, match=r"no such file or folder"):
        read("1m", tmp_path / "none.zip")
    with pytest.raises(DataError, match=r"there is no ratings\.csv in it"):
        read("20m", tmp_path)
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"ml\.zip: damaged zip .* Download it again"):
        read("1m", file)
    flipped = bytearray(content)
    flipped[60] ^= 255
    file.write_bytes(bytes(flipped))
    with pytest.raises(DataError, match=r"ml\.zip: damaged zip"):
        read("1m", file)


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", "userId,movieId,rating,timestamp\nx,1,2,3\n"])
def test_files_of_another_format(text, tmp_path):
    (tmp_path / "ratings.csv").write_text(text)
    (tmp_path / "movies.csv").write_text(CSV_MOVIES)
    with pytest.raises(DataError, match=r"ratings\.csv: not a MovieLens ratings file"):
        read("25m", tmp_path)


@pytest.mark.parametrize("variant", ["1m", "100k", "25m"])
def test_movies_of_another_format(variant, tmp_path):
    for name, text in FILES[variant].items():
        (tmp_path / name).write_text(text)
    name = movielens.VARIANTS[variant].movies
    (tmp_path / name).write_text("a|b|c\na::b::c\n")
    with pytest.raises(DataError, match=rf"{name}: not a MovieLens movies file"):
        read(variant, tmp_path)


@pytest.fixture
def server(tmp_path):
    folder = tmp_path / "served"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, directory=str(folder), **kwargs)

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield folder, f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()
        thread.join()


def know(monkeypatch, url, content):
    """Registers a URL's size and checksum with TFDS, as it does for the published zips."""
    from tensorflow_datasets.core.download import checksums

    info = checksums.UrlInfo(len(content), hashlib.sha256(content).hexdigest(), "ml-1m.zip")
    monkeypatch.setattr(checksums, "get_all_url_infos", lambda: {url: info})


def test_download_is_checked(server, tmp_path, monkeypatch):
    folder, address = server
    content = make_zip(folder / "ml-1m.zip", "1m").read_bytes()
    monkeypatch.setattr(movielens, "URL", address + "/{folder}.zip")
    config = DataConfig(dataset="movielens", variant="1m")
    know(monkeypatch, f"{address}/ml-1m.zip", content)
    assert len(source.read(config, tmp_path / "downloads")[0]) == 3
    (folder / "ml-1m.zip").unlink()  # the second time it is at hand
    assert len(source.read(config, tmp_path / "downloads")[0]) == 3
    with pytest.raises(DataError, match=r"ml-1m\.zip: download failed .*set data\.path"):
        source.read(config, tmp_path / "elsewhere")


def test_download_that_is_another_file(server, tmp_path, monkeypatch):
    folder, address = server
    make_zip(folder / "ml-1m.zip", "1m")
    monkeypatch.setattr(movielens, "URL", address + "/{folder}.zip")
    know(monkeypatch, f"{address}/ml-1m.zip", b"something else")
    config = DataConfig(dataset="movielens", variant="1m")
    with pytest.raises(DataError, match=r"(?s)ml-1m\.zip: .*another checksum.*set data\.path"):
        source.read(config, tmp_path / "downloads")


def test_published_zips_have_known_checksums():
    from tensorflow_datasets.core.download import checksums

    known = checksums.get_all_url_infos()
    for name, variant in movielens.VARIANTS.items():
        if name in movielens.WITHOUT_CHECKSUM:
            with pytest.raises(DataError, match=rf"{variant.zip or variant.folder}\.zip"):
                source.read(DataConfig(dataset="movielens", variant=name), None)
            continue
        assert movielens.URL.format(folder=variant.zip or variant.folder) in known
