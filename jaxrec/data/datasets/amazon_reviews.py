"""Amazon reviews: ratings of products by category, releases of 2014 and 2023.

2014: J. McAuley et al.: Image-based recommendations on styles and substitutes, SIGIR 2015; 143
million reviews. `data.path`: "ratings only" CSV files, without a header, of user, item, rating and
time in seconds (`ratings_Books.csv`). `data.items_path`: `meta_Books.json.gz`, one Python literal
per line.

2023: Y. Hou et al.: Bridging language and items for retrieval and recommendation, arXiv 2403.03952;
571 million reviews. `data.path`: JSON-lines files of reviews (`Books.jsonl.gz`: user_id,
parent_asin, timestamp in milliseconds, rating, ...) or CSV files with these columns (its 5-core and
rating-only files). `data.items_path`: `meta_Books.jsonl.gz`. The item is `parent_asin`.

`data.variant` is `2014` or `2023`. Licence: none stated, for research; see
amazon-reviews-2023.github.io and cseweb.ucsd.edu/~jmcauley/datasets.html, where the files are
downloaded. Every review is an event, whatever its stars. `data.text_columns` chooses among the
columns of the items' file, by default title, brand or store, and categories.

Columns of 2023 as on huggingface.co/datasets/McAuley-Lab/Amazon-Reviews-2023 and in code that
reads its files (CSV header user_id, parent_asin, rating, timestamp; times such as 1588687728923),
those of 2014 as documented by importers of `ratings_Books.csv` (user, item, rating, time).
"""

import ast
import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple

from jaxrec.config import DataConfig
from jaxrec.data.datasets import files
from jaxrec.data.digests import Digest
from jaxrec.data.raw import Chunk, Names, Raw
from jaxrec.errors import DataError
from jaxrec.types import Json
from jaxrec.untrusted import lines

if TYPE_CHECKING:
    import polars as pl

VERSION = 1
ROWS = 1 << 15  # items parsed at once


class Release(NamedTuple):
    """Columns of a release.

    names: of events. unit: of times. texts: default text columns. item: id column of the file of
    items.
    """

    names: Names
    unit: str
    texts: tuple[str, ...]
    item: str


RELEASES = {
    "2014": Release(
        Names("user", "item", "timestamp"), "s", ("title", "brand", "categories"), "asin"
    ),
    "2023": Release(
        Names("user_id", "parent_asin", "timestamp"),
        "ms",
        ("title", "store", "categories"),
        "parent_asin",
    ),
}
ASIN = r"^(?:B[0-9A-Z]{9}|\d{9}[0-9X])$"


def fingerprint(config: DataConfig, digest: Digest) -> Json:
    """Identifies the content of the source (see `jaxrec.data.datasets.fingerprint`)."""
    _release(config)
    return {
        "reader": VERSION,
        "files": files.fingerprint(files.find(config.path, "data.path"), digest),
        "items": files.fingerprint(_items(config), digest),
    }


def read(config: DataConfig, downloads: Path) -> Raw:
    """Reviews as events, and the items' texts where `data.items_path` is set."""
    release, paths, items = _release(config), files.find(config.path, "data.path"), _items(config)
    types = dict.fromkeys(release.names[:2], "String") | {release.names.time: "Int64"}
    header = ("user", "item", "rating", "timestamp") if config.variant == "2014" else ()
    hint = f"Set data.path and data.variant to files of one release; {config.variant!r} is set"
    file_format = files.Format(types=types, header=header, hint=hint)

    def chunks() -> Iterator[Chunk]:
        for chunk in files.chunks(paths, release.names, file_format):
            _check_order(chunk, release.names)
            yield chunk

    columns = config.text_columns or release.texts

    def texts() -> "Iterator[pl.DataFrame]":
        if config.variant == "2014":
            for file in items:
                yield from _literals(file, release.item, columns)
            return
        known = {release.item: "String"}
        for frame, _, _ in files.frames(
            items, (release.item, *columns), files.Format(types=known, hint=hint)
        ):
            yield frame.rename({release.item: "item"})

    return Raw(chunks, release.names, config.path, release.unit, texts if items else None)


def _release(config: DataConfig) -> Release:
    if config.variant not in RELEASES:
        raise DataError(f"data.variant={config.variant!r}: allowed are {', '.join(RELEASES)}")
    return RELEASES[config.variant]


def _items(config: DataConfig) -> list[Path]:
    return files.find(config.items_path, "data.items_path") if config.items_path else []


def _check_order(chunk: Chunk, names: Names) -> None:
    """The release of 2018 has item and user the other way round, without a header that says so."""
    users, items = (chunk.frame[name].drop_nulls().str.contains(ASIN) for name in ("user", "item"))
    if len(users) and users.all() and not items.any():
        raise DataError(
            f"{chunk.source}: column {names.user!r} holds product ids such as "
            f"{chunk.frame['user'][0]!r} and {names.item!r} none: the columns are swapped, as in "
            "the files of 2018. Use data.dataset=table for these"
        )


def _literals(file: Path, item: str, columns: tuple[str, ...]) -> "Iterator[pl.DataFrame]":
    """Items of 2014: Python dictionaries, a line each."""
    import polars as pl

    rows: list[list[str | None]] = []
    schema = dict.fromkeys(("item", *columns), pl.String)
    with _open(file) as stream, files.guarded(file):
        for number, line in enumerate(lines.bounded(stream, str(file), DataError), 1):
            try:
                values = ast.literal_eval(line.decode())
                rows.append([values[item], *(_plain(values.get(name)) for name in columns)])
            except (SyntaxError, ValueError, KeyError, AttributeError, TypeError) as error:
                raise DataError(
                    f"{file}: line {number} is no item of 2014 ({error!r}): a Python "
                    f"dictionary with {item!r} is needed. Set data.variant to the file's release"
                ) from error
            if len(rows) == ROWS:
                yield pl.DataFrame(rows, schema, orient="row")
                rows = []
    yield pl.DataFrame(rows, schema, orient="row")


def _open(file: Path) -> IO[bytes]:
    return gzip.open(file) if file.suffix == ".gz" else file.open("rb")  # type: ignore[return-value]


def _plain(value: object) -> str | None:
    """A value as text; (nested) lists are joined with commas."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, list):
        return ", ".join(filter(None, map(_plain, value)))
    return str(value)
