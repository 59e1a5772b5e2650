"""MovieLens (GroupLens): movie ratings, every rating an event, whatever its stars.

F. M. Harper, J. A. Konstan: The MovieLens Datasets: History and Context, 2015. Variants
(`data.variant`): latest-small, 100k, 1m, 20m, 25m. `data.path` names the downloaded zip or its
extracted folder; left empty, TFDS downloads the zip and checks it against its known checksum.
The movies' titles and genres are the item texts.

Many ratings of one user share a second; like the published protocols, ties keep the file's order
(20m, 25m and latest-small list a user's ratings by movie id).
"""

import io
import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jaxrec.config import DataConfig
from jaxrec.data.datasets import files
from jaxrec.data.schema import DataError, ItemTexts, Raw, check

if TYPE_CHECKING:
    import polars as pl

VERSION = 1
URL = "https://files.grouplens.org/datasets/movielens/{folder}.zip"


class Variant(NamedTuple):
    """Names inside the zip."""

    folder: str
    ratings: str
    movies: str


VARIANTS = {
    "latest-small": Variant("ml-latest-small", "ratings.csv", "movies.csv"),
    "100k": Variant("ml-100k", "u.data", "u.item"),
    "1m": Variant("ml-1m", "ratings.dat", "movies.dat"),
    "20m": Variant("ml-20m", "ratings.csv", "movies.csv"),
    "25m": Variant("ml-25m", "ratings.csv", "movies.csv"),
}


def fingerprint(config: DataConfig) -> Any:
    variant = _variant(config)
    if not config.path:  # the download is checked against a checksum
        return {"reader": VERSION, "url": URL.format(folder=variant.folder)}
    path = Path(config.path)
    parts = [path] if path.is_file() else [_inside(path, variant, n) for n in variant[1:]]
    return {"reader": VERSION, "files": files.fingerprint(parts)}


def read(config: DataConfig, downloads: Path) -> Raw:
    """Ratings as interactions, titles and genres as texts; downloads into `downloads`."""
    variant = _variant(config)
    path = Path(config.path) if config.path else download(variant, downloads)
    source = f"{path}: {variant.ratings}"
    table = _table(_bytes(path, variant, variant.ratings), variant, source)
    interactions = check(
        {name: table[name].to_numpy() for name in ("user", "item", "time")},
        source,
        user="user",
        item="item",
        time="time",
        duplicates=config.duplicates,
    )
    movies = _movies(_bytes(path, variant, variant.movies), variant, f"{path}: {variant.movies}")
    return Raw(interactions, movies, source)


def download(variant: Variant, downloads: Path) -> Path:
    """The zip, downloaded by TFDS and checked against the checksum that TFDS knows for it."""
    import requests
    import tensorflow_datasets as tfds

    url = URL.format(folder=variant.folder)
    manager = tfds.download.DownloadManager(download_dir=downloads, force_checksums_validation=True)
    try:
        return Path(manager.download(url))
    except (requests.RequestException, tfds.download.DownloadError, OSError) as error:
        raise DataError(
            f"{url}: download failed ({error}). Download it elsewhere and set data.path to the zip"
        ) from error
    except Exception as error:
        # TFDS raises its checksum error, a plain Exception, from a module it does not export
        if "checksum" not in type(error).__name__.lower():
            raise
        raise DataError(
            f"{url}: the downloaded file has another checksum than known: {error}. Download it "
            "elsewhere, check it and set data.path to the zip"
        ) from error


def _variant(config: DataConfig) -> Variant:
    if config.variant not in VARIANTS:
        raise DataError(f"data.variant={config.variant!r}: allowed are {', '.join(VARIANTS)}")
    return VARIANTS[config.variant]


def _inside(path: Path, variant: Variant, name: str) -> Path:
    """A file of the extracted folder, or of the folder above it."""
    if not path.exists():
        raise DataError(f"data.path={str(path)!r}: no such file or folder")
    for file in (path / name, path / variant.folder / name):
        if file.is_file():
            return file
    raise DataError(
        f"data.path={str(path)!r}: there is no {name} in it. Give the folder {variant.folder} or "
        f"{variant.folder}.zip, or set data.variant to what it holds"
    )


def _bytes(path: Path, variant: Variant, name: str) -> bytes:
    if path.is_dir() or not path.exists():
        return _inside(path, variant, name).read_bytes()
    try:
        with zipfile.ZipFile(path) as archive:
            members = [m for m in archive.namelist() if m.split("/")[-1] == name]
            if not members:
                raise DataError(
                    f"{path}: there is no {name} in it, but: {', '.join(archive.namelist()[:20])}. "
                    "Set data.variant to what it holds"
                )
            return archive.read(members[0])
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise DataError(f"{path}: damaged zip ({error}). Download it again") from error


def _table(content: bytes, variant: Variant, source: str) -> "pl.DataFrame":
    """Columns user, item, time of a ratings file."""
    import polars as pl

    names, types = ["user", "item", "time"], [pl.Int64] * 3
    try:
        if variant.ratings.endswith(".csv"):
            table = pl.read_csv(io.BytesIO(content))
            table = table.select(user="userId", item="movieId", time="timestamp")
        else:
            # `::` is two separators with an empty column between them
            separator = ":" if variant.ratings.endswith(".dat") else "\t"
            columns = [0, 2, 6] if separator == ":" else [0, 1, 3]
            table = pl.read_csv(
                io.BytesIO(content), separator=separator, has_header=False, columns=columns
            )
            table = table.rename(dict(zip(table.columns, names, strict=True)))
        return table.cast(dict(zip(names, types, strict=True)))
    except (pl.exceptions.PolarsError, ValueError) as error:
        raise DataError(f"{source}: not a MovieLens ratings file ({error})") from error


def _movies(content: bytes, variant: Variant, source: str) -> ItemTexts:
    """Titles and genres (comma separated) of a movies file."""
    try:
        if variant.movies.endswith(".csv"):
            import polars as pl

            table = pl.read_csv(io.BytesIO(content))
            rows = list(table.select("movieId", "title", "genres").iter_rows())
        else:
            separator = "::" if variant.movies.endswith(".dat") else "|"
            lines = [line.split(separator) for line in content.decode("latin-1").splitlines()]
            if separator == "|":
                lines = [[r[0], r[1], _genre_names(r[5:])] for r in lines if len(r) > 1]
            rows = [(row[0], row[1], row[2]) for row in lines if len(row) > 1]
        ids = np.asarray([int(row[0]) for row in rows], np.int64)
    except (KeyError, IndexError, ValueError, UnicodeDecodeError) as error:
        raise DataError(f"{source}: not a MovieLens movies file ({error!r})") from error
    titles = np.asarray([row[1] for row in rows], object)
    genres = np.asarray([(row[2] or "").replace("|", ", ") for row in rows], object)
    return ItemTexts(ids, {"title": titles, "genres": genres})


# u.item of 100k has one 0/1 column per genre, in the order of u.genre
GENRES_100K = (
    *("unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime"),
    *("Documentary", "Drama", "Fantasy", "Film-Noir", "Horror", "Musical", "Mystery"),
    *("Romance", "Sci-Fi", "Thriller", "War", "Western"),
)


def _genre_names(flags: list[str]) -> str:
    return "|".join(name for name, flag in zip(GENRES_100K, flags, strict=True) if flag == "1")
