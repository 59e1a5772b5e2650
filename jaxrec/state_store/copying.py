"""Copies of a store, into any number of shards, that can be interrupted and continued.

`copy.json` in the target says what is copied and how far it got. It is written before the
target becomes a store and deleted last, so that half a copy cannot be taken for a whole one.
"""

from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np

from jaxrec.errors import StoreError
from jaxrec.state_store.metadata import COPY_FILE, Metadata, delete_json, read_json, write_json
from jaxrec.state_store.places import Place, display
from jaxrec.state_store.reader import StoreReader
from jaxrec.types import Json, UserId
from jaxrec.untrusted import json_objects

BATCH = 1024


class Target(Protocol):
    """A store that is open for writing."""

    root: Place

    def write(self, user_ids: list[UserId], columns: Mapping[str, np.ndarray]) -> None:
        """As `StoreWriter.write`."""
        ...


def begin(root: Place, source: Metadata) -> None:
    """Marks a place as the target of a copy; keeps the marker of the same unfinished copy."""
    content, version = read_json(root, COPY_FILE)
    if content is not None:
        check_source(root, source)
    else:
        start = {"source": source.identity, "ranges": [], "shard": 0, "users": 0}
        write_json(root, COPY_FILE, start, version)


def check_source(root: Place, source: Metadata) -> Json:
    """Progress of the unfinished copy at `root`; StoreError unless it is a copy of `source`."""
    content, _ = read_json(root, COPY_FILE)
    if content is None:
        raise StoreError(
            f"{display(root)}: there already is a store, and not an unfinished copy; "
            "choose another place"
        )
    if content.get("source") != source.identity:
        raise StoreError(
            f"{display(root, COPY_FILE)}: an unfinished copy of store {content.get('source')}, "
            f"not of {source.identity}; finish that one, or choose another place"
        )
    where = display(root, COPY_FILE)
    for name in ("users", "shard"):
        json_objects.size(content, name, where, StoreError, high=1 << 62)
    ranges = json_objects.get(content, "ranges", list, where, StoreError)
    if ranges and not (len(ranges) == 2 and all(type(x) is int and x >= 0 for x in ranges)):
        raise StoreError(f"{where}: damaged: ranges={json_objects.shown(ranges)}")
    return content


def copy_users(source: StoreReader, target: Target, track: Callable[[int], None]) -> int:
    """Copies the remaining users and removes the marker; returns the users of all calls.

    The marker advances once the rows of a part of a shard are durable; the rows of an interrupted
    part are written again.
    """
    progress = check_source(target.root, source.metadata)
    users = int(progress["users"])
    for shard in range(int(progress["shard"]), source.num_shards):
        # [next part, parts]: fixed when a shard is started, as the source may grow meanwhile
        part, parts = progress["ranges"] or (0, source.num_ranges(shard))
        while part < parts:
            for ids, columns in source.iterate_range(shard, part, parts, BATCH):
                target.write(ids, columns)
                users += len(ids)
                track(users)
            part += 1
            progress = progress | {"ranges": [part, parts], "shard": shard, "users": users}
            _save(target.root, progress)
        progress = progress | {"ranges": [], "shard": shard + 1}
        _save(target.root, progress)
    delete_json(target.root, COPY_FILE)
    return users


def _save(root: Place, progress: Json) -> None:
    write_json(root, COPY_FILE, progress)
