"""A new store from the states of a snapshot."""

from jaxrec.errors import StoreError
from jaxrec.serving.snapshot import Snapshot
from jaxrec.serving.tracking import Progress, no_progress
from jaxrec.state_store.metadata import (
    COPY_FILE,
    STORE_FILE,
    Metadata,
    check_num_shards,
    delete_json,
    read_json,
    write_json,
)
from jaxrec.state_store.places import Url, display, open_root
from jaxrec.state_store.store import UserStateStore
from jaxrec.untrusted import json_objects


def restore(
    snapshot: Snapshot,
    url: Url,
    num_shards: int,
    progress: Progress = no_progress,
) -> int:
    """Writes the states of a snapshot into a new store of `num_shards`; returns how many users.

    The same call goes on where a killed one stopped; until it is done the store cannot be
    opened for reading. progress: over parts. Raises StoreError when another store is there.
    """
    metadata = snapshot.metadata
    check_num_shards(num_shards)
    source = f"snapshot {snapshot.identity} of {snapshot.users} users"
    root = open_root(url)
    marker = read_json(root, COPY_FILE)[0]
    if marker is not None and marker.get("source") != source:
        raise StoreError(
            f"{display(root, COPY_FILE)}: an unfinished copy of {marker.get('source')}, not of "
            f"{source}; finish that one, or choose another place"
        )
    done = 0
    if marker is not None:
        where = display(root, COPY_FILE)
        done = json_objects.size(marker, "parts", where, StoreError, high=len(snapshot.parts))
    users = sum(part.users for part in snapshot.parts[:done])

    def record_progress(parts: int) -> None:
        write_json(root, COPY_FILE, {"source": source, "parts": parts, "users": users})

    if read_json(root, STORE_FILE)[0] is None:
        record_progress(0)  # half of it cannot be taken for a whole store
        store = UserStateStore.create(url, metadata.spec, metadata.binding, num_shards)
    else:
        store = _open_unfinished(metadata, url, num_shards, begun=marker is not None)
    with store:
        parts = enumerate(snapshot.iterate(done), done)
        for index, (ids, columns) in progress(parts, len(snapshot.parts) - done):
            record_progress(index)
            store.write(ids, columns)
            users += len(ids)
        delete_json(root, COPY_FILE)
    return users


def _open_unfinished(
    metadata: Metadata, url: Url, num_shards: int, *, begun: bool
) -> UserStateStore:
    """The target of a restore that was killed; raises StoreError when it is another store."""
    if not begun:
        users = sum(shard.users for shard in UserStateStore.open(url, None).stat())
        raise StoreError(f"{url}: there already is a store of {users} users; choose another place")
    store = UserStateStore.open(url, metadata.binding, spec=metadata.spec, mode="w")
    if store.num_shards != num_shards:
        store.close()
        raise StoreError(
            f"{url}: the unfinished restore there has {store.num_shards} shards, not "
            f"{num_shards}; finish it with that number, or choose another place"
        )
    return store
