"""Where a store is: directories of any key-value store that TensorStore reaches."""

import functools
import os
from typing import NamedTuple, Self, TypeAlias

import tensorstore as ts

from jaxrec.errors import StoreError
from jaxrec.types import Json

# a local path, a TensorStore kvstore URL (gs://, s3://, file://...) or its JSON spec
Url: TypeAlias = str | os.PathLike[str] | Json


class Place(NamedTuple):
    """A directory, and the spec by which it can be opened again.

    The spec is kept because asking for it leaks: TensorStore (0.1.86) never frees the keys and
    values of JSON that it hands out (`Spec.to_json`, `ocdbt.dump`). A process that opened a store
    and read from it a thousand times lost 9 MB that way.
    """

    kvstore: ts.KvStore
    spec: Json

    def __truediv__(self, name: str) -> Self:
        """The directory `name` of this one; a name ends with a slash."""
        below = self.kvstore / name
        return type(self)(below, self.spec | {"path": below.path})


@functools.cache
def process_context() -> ts.Context:
    """One context per process, so that a `memory://` place can be opened several times."""
    return ts.Context({"memory_key_value_store": {}})


def open_root(url: Url, context: ts.Context | None = None) -> Place:
    """The place of a store, as a directory.

    context: default `process_context`. Raises StoreError when `url` is not a valid place.
    """
    context = context or process_context()
    if isinstance(url, str) and not url.strip():
        raise StoreError(f"{url!r} is not a place for a store: a path or a URL is needed")
    try:
        spec = unlocked(_described(url))
        root = ts.KvStore.open(spec, context=context).result()
    except (ValueError, KeyError) as error:
        raise StoreError(f"{url}: not a place for a store: {error}") from error
    root = root if root.path.endswith("/") else root + "/"
    return Place(root, spec | {"path": root.path})


def unlocked(spec: Json) -> Json:
    """The spec of a key-value store; local files are replaced without TensorStore's own locks.

    TensorStore (0.1.86) locks `manifest.ocdbt` by a file `manifest.ocdbt.__lock`, into which it
    then writes the new content before it renames it. A process killed in between leaves the file,
    and the next writer overwrites it without truncating: a shorter manifest then ends in stale
    bytes and the database is lost. Without these locks every write takes a new temporary file,
    and `lock.py` makes sure that a shard has one writer.
    """
    return spec | {"file_io_locking": {"mode": "none"}} if spec["driver"] == "file" else spec


def local_path(place: Place) -> str | None:
    """The directory of a local store; None for other stores."""
    return place.kvstore.path if place.spec["driver"] == "file" else None


def display(place: Place, name: str = "") -> str:
    """How errors name a place."""
    return (local_path(place) or place.kvstore.url) + name


def _described(url: Url) -> Json:
    """The spec of a place that a caller names."""
    if isinstance(url, dict):
        return url
    text = os.fspath(url)
    if "://" in text:
        return _spec_of_url(text)
    return {"driver": "file", "path": os.path.abspath(text) + "/"}


@functools.cache  # see `Place`
def _spec_of_url(url: str) -> Json:
    spec: Json = ts.KvStore.Spec(url).to_json()
    return spec
