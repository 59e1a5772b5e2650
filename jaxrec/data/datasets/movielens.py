"""MovieLens (GroupLens): movie ratings, every rating an event, whatever its stars.

F. M. Harper, J. A. Konstan: The MovieLens Datasets: History and Context, 2015. Variants
(`data.variant`): latest-small, 100k, 1m, 10m, 20m, 25m, 32m. `data.path` names the downloaded zip
or its extracted folder; left empty, TFDS downloads the zip and checks it against its known checksum
(not 10m and 32m).
Licence: research use, no redistribution without permission; see the README in each zip.
The movies' titles and genres are the item texts.

Many ratings of one user share a second; like the published protocols, ties keep the file's order
(20m, 25m, 32m and latest-small list a user's ratings by movie id).
"""

import contextlib
import io
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from jaxrec.config import DataConfig
from jaxrec.data.datasets import files
from jaxrec.data.digests import Digest
from jaxrec.data.raw import Chunk, Names, Raw
from jaxrec.errors import DataError
from jaxrec.types import Json
from jaxrec.untrusted.arrays import check_unpacked

if TYPE_CHECKING:
    import polars as pl

VERSION = 2
MAX_MOVIES = 1 << 28  # bytes of a movies file, which is read at once
WITHOUT_CHECKSUM = ("10m", "32m")  # TFDS knows none: they are not downloaded
URL = "https://files.grouplens.org/datasets/movielens/{folder}.zip"


class Variant(NamedTuple):
    """Names inside the zip."""

    folder: str
    ratings: str
    movies: str
    encoding: str = "utf-8"  # of the movies file
    zip: str = ""  # name of the zip, where it is not that of the folder


VARIANTS = {
    "latest-small": Variant("ml-latest-small", "ratings.csv", "movies.csv"),
    "100k": Variant("ml-100k", "u.data", "u.item", "latin-1"),
    "1m": Variant("ml-1m", "ratings.dat", "movies.dat", "latin-1"),
    "10m": Variant("ml-10M100K", "ratings.dat", "movies.dat", zip="ml-10m"),
    "20m": Variant("ml-20m", "ratings.csv", "movies.csv"),
    "25m": Variant("ml-25m", "ratings.csv", "movies.csv"),
    "32m": Variant("ml-32m", "ratings.csv", "movies.csv"),
}


def fingerprint(config: DataConfig, digest: Digest) -> Json:
    """Identifies the content of the source (see `jaxrec.data.datasets.fingerprint`)."""
    variant = _variant(config)
    if not config.path:  # the download is checked against a checksum
        return {"reader": VERSION, "url": URL.format(folder=variant.zip or variant.folder)}
    path = Path(config.path)
    parts = [path] if path.is_file() else [_inside(path, variant, n) for n in variant[1:3]]
    return {"reader": VERSION, "files": files.fingerprint(parts, digest)}


def read(config: DataConfig, downloads: Path) -> Raw:
    """Ratings as interactions, titles and genres as texts; downloads into `downloads`."""
    variant = _variant(config)
    path = Path(config.path) if config.path else download(variant, downloads)
    source = f"{path}: {variant.ratings}"
    if variant.ratings.endswith(".csv"):
        file_format, names = files.Format(), Names("userId", "movieId", "timestamp")
    else:
        # `::` is two separators with an empty column between them
        wide = variant.ratings.endswith(".dat")
        header = ("user", "_1", "item", "_3", "rating", "_5", "time") if wide else None
        names = Names("user", "item", "time")
        file_format = files.Format(
            header=header or ("user", "item", "rating", "time"), separator=":" if wide else "\t"
        )
    types = dict.fromkeys(names[:3], "Int64")
    file_format = file_format._replace(
        types=types, text=True, hint="Set data.variant to what the file is"
    )

    def chunks() -> Iterator[Chunk]:
        with _extracted(path, variant, variant.ratings, downloads) as file:
            rows = files.chunks([file], names, file_format)
            while (chunk := _next(rows, source)) is not None:
                yield chunk._replace(source=source)

    def texts() -> "Iterator[pl.DataFrame]":
        with _extracted(path, variant, variant.movies, downloads) as file:
            yield _movies(file.read_bytes(), variant, f"{path}: {variant.movies}")

    return Raw(chunks, names, source, texts=texts)


def _next(rows: Iterator[Chunk], source: str) -> Chunk | None:
    try:
        return next(rows, None)
    except DataError as error:
        raise DataError(f"{source}: not a MovieLens ratings file ({error})") from error


def download(variant: Variant, downloads: Path) -> Path:
    """The zip, downloaded by TFDS and checked against the checksum that TFDS knows for it."""
    import requests
    import tensorflow_datasets as tfds

    url = URL.format(folder=variant.zip or variant.folder)
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
    if config.variant in WITHOUT_CHECKSUM and not config.path:
        variant = VARIANTS[config.variant]
        raise DataError(
            f"data.path='': download {URL.format(folder=variant.zip or variant.folder)} and set "
            "data.path to the zip; no checksum is known to download it safely"
        )
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


@contextlib.contextmanager
def _extracted(path: Path, variant: Variant, name: str, downloads: Path) -> Iterator[Path]:
    """A file of the folder, or of the zip, unpacked for as long as it is needed."""
    if path.is_dir() or not path.exists():
        yield _inside(path, variant, name)
        return
    downloads.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=downloads) as folder:
        file = Path(folder) / name
        try:
            with zipfile.ZipFile(path) as archive:
                members = [m for m in archive.namelist() if m.split("/")[-1] == name]
                if not members:
                    raise DataError(
                        f"{path}: there is no {name} in it, but: "
                        f"{', '.join(archive.namelist()[:20])}. Set data.variant to what it holds"
                    )
                member = archive.getinfo(members[0])
                check_unpacked(path.stat().st_size, member.file_size, member.filename)
                if name == variant.movies and member.file_size > MAX_MOVIES:
                    raise ValueError(f"{name} declares {member.file_size:,} bytes")
                # under its plain name, whatever the archive calls it
                with archive.open(member) as packed, file.open("wb") as plain:
                    shutil.copyfileobj(packed, plain)
        except DataError:
            raise
        except OSError as error:
            raise DataError(f"{path}: cannot be unpacked ({error})") from error
        except (
            zipfile.BadZipFile,
            zlib.error,
            EOFError,
            KeyError,
            NotImplementedError,
            RuntimeError,
            ValueError,
        ) as error:
            raise DataError(f"{path}: damaged zip ({error}). Download it again") from error
        yield file


def _movies(content: bytes, variant: Variant, source: str) -> "pl.DataFrame":
    """Titles and genres (comma separated) of a movies file."""
    import polars as pl

    try:
        if variant.movies.endswith(".csv"):
            try:
                table = pl.read_csv(io.BytesIO(content)).select("movieId", "title", "genres")
            except pl.exceptions.PolarsError as error:
                raise ValueError(str(error)) from error
            rows = list(table.iter_rows())
        else:
            separator = "::" if variant.movies.endswith(".dat") else "|"
            text = content.decode(variant.encoding)
            lines = [line.split(separator) for line in text.splitlines()]
            if separator == "|":
                lines = [[r[0], r[1], _genre_names(r[5:])] for r in lines if len(r) > 1]
            rows = [(row[0], row[1], row[2]) for row in lines if len(row) > 1]
        ids = [int(row[0]) for row in rows]
    except (KeyError, IndexError, ValueError, UnicodeDecodeError) as error:
        raise DataError(f"{source}: not a MovieLens movies file ({error!r})") from error
    titles = [row[1] for row in rows]
    genres = [(row[2] or "").replace("|", ", ") for row in rows]
    columns = {"item": ids, "title": titles, "genres": genres}
    return pl.DataFrame(columns, schema={"item": pl.Int64, "title": pl.String, "genres": pl.String})


# u.item of 100k has one 0/1 column per genre, in the order of u.genre
GENRES_100K = (
    *("unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime"),
    *("Documentary", "Drama", "Fantasy", "Film-Noir", "Horror", "Musical", "Mystery"),
    *("Romance", "Sci-Fi", "Thriller", "War", "Western"),
)


def _genre_names(flags: list[str]) -> str:
    return "|".join(name for name, flag in zip(GENRES_100K, flags, strict=True) if flag == "1")
