"""The persistent store of user states: raw user id -> one row of fixed shape.

    store = UserStateStore.create(url, RowSpec.of(columns), binding)
    store.write(user_ids, columns)              # durable when it returns
    columns, known = store.read(user_ids)
    store.update(user_ids, fn)                  # read, modify, write: old or new, never mixed

Layout of a store (every name below is a key under `url`):

    store.json            format, identity, number of shards, binding, row spec
    writer.lock           local disks: held while the store is created
    shard-00000/…         see shard.py; a user's shard is hash(id) mod num_shards
    copy.json             only while the store is the target of an unfinished copy

Promises, each held by a test:

- `write`, `update` and `delete` return when the rows survive SIGKILL and power loss (files
  are synced); a row is old or new as a whole, never a mixture, at any moment, for any reader.
- One call is atomic per shard, not over shards. After an error, `StoreError.users` are the
  users that were not written.
- A truncated or bit-flipped file is an error that names it, never another value.
- No row and no key is loaded at open; memory is bounded by `cache_bytes`, the batch, and one
  part of a shard's keys.
- Several processes write at the same time when they hold different shards. On local disks a
  second writer of a shard is refused; on object stores transactions serialise writers.
- `delete` + `compact` removes the bytes from the disk.
"""

import contextlib
import os
import uuid
from collections.abc import Callable, Iterable, Iterator
from typing import Self

import tensorstore as ts

from jaxrec.errors import StoreError
from jaxrec.state_store import copying
from jaxrec.state_store.lock import WriterLock
from jaxrec.state_store.metadata import (
    COPY_FILE,
    STORE_FILE,
    Binding,
    Metadata,
    check_binding,
    check_num_shards,
    parse_metadata,
    read_json,
    write_json,
)
from jaxrec.state_store.places import Place, Url, display, local_path, open_root, process_context
from jaxrec.state_store.row_format import RowSpec
from jaxrec.state_store.shard import create_shard
from jaxrec.state_store.writer import StoreWriter

# Cache for tree nodes, which every access reads; rows are not cached.
CACHE_BYTES = 64 << 20


class UserStateStore(StoreWriter):
    """A store, opened for reading (`mode="r"`) or for writing the given shards (`mode="w"`).

    Methods may be called from several threads. Use as a context manager, or `close`.
    """

    # -- opening -----------------------------------------------------------------------------

    @classmethod
    def create(
        cls,
        url: Url,
        spec: RowSpec,
        binding: Binding,
        num_shards: int = 8,
        *,
        shards: Iterable[int] | None = None,
        cache_bytes: int = CACHE_BYTES,
        context: ts.Context | None = None,
    ) -> Self:
        """A new empty store, open for writing `shards` (all by default).

        Raises StoreError when there already is a store (it is never overwritten), or another
        process is creating one there.
        """
        check_num_shards(num_shards)
        context = context or make_context(cache_bytes)
        root = open_root(url, context)
        where = display(root, STORE_FILE)
        with creating(root):
            content, version = read_json(root, STORE_FILE)
            if content is not None:
                raise StoreError(
                    f"{where}: there already is a store; open it, or choose another place"
                )
            metadata = Metadata(uuid.uuid4().hex, num_shards, binding, spec)
            for index in range(num_shards):
                create_shard(root, index, metadata.identity, context)
            if not write_json(root, STORE_FILE, metadata.to_json(), version):
                raise StoreError(f"{where}: another process created a store here meanwhile")
        return cls.open(
            url, binding, mode="w", shards=shards, cache_bytes=cache_bytes, context=context
        )

    @classmethod
    def open(
        cls,
        url: Url,
        binding: Binding | None,
        *,
        spec: RowSpec | None = None,
        mode: str = "r",
        shards: Iterable[int] | None = None,
        cache_bytes: int = CACHE_BYTES,
        context: ts.Context | None = None,
    ) -> Self:
        """An existing store.

        binding, spec: what the store must have been created with; StoreError names both
            values of what differs. None: any (tools that only look at bytes).
        mode: "r", or "w" to hold `shards` (all by default) for writing; all shards can be read.
        context: TensorStore context, replaces `cache_bytes`; a `memory://` store is known to
            one context, by default to the whole process.
        """
        if mode not in ("r", "w"):
            raise ValueError(f"mode={mode!r}: allowed are r, w")
        context = context or make_context(cache_bytes)
        root = open_root(url, context)
        where = display(root, STORE_FILE)
        content, _ = read_json(root, STORE_FILE)
        if content is None:
            raise StoreError(f"{where}: missing, there is no store here; create it first")
        metadata = parse_metadata(content, where)
        if binding is not None:
            check_binding(metadata, binding, spec, where)
        if mode == "r" and (progress := read_json(root, COPY_FILE)[0]) is not None:
            raise StoreError(
                f"{display(root, COPY_FILE)}: the store is the target of an unfinished copy "
                f"({progress.get('users')} users so far); run the copy again to finish it"
            )
        return cls(root, metadata, mode, shards, context)

    def copy(
        self,
        url: Url,
        num_shards: int | None = None,
        track: Callable[[int], None] = lambda users: None,
        *,
        context: ts.Context | None = None,
    ) -> int:
        """Copies all users into a new store of `num_shards` (default: as many); returns how many.

        The same call goes on where a killed one stopped; until it is done the copy cannot be
        opened for reading. Users written meanwhile may be missed, every row is whole. track:
        called with the number of users copied so far. Raises StoreError when another store is
        at `url`.
        """
        self.flush()
        context = context or make_context(CACHE_BYTES)
        root = open_root(url, context)
        shards = self.num_shards if num_shards is None else num_shards
        check_num_shards(shards)
        binding = self.metadata.binding
        if read_json(root, STORE_FILE)[0] is None:
            copying.begin(root, self.metadata)
            target = type(self).create(url, self.spec, binding, shards, context=context)
        else:
            copying.check_source(root, self.metadata)
            target = type(self).open(url, binding, spec=self.spec, mode="w", context=context)
            if target.num_shards != shards:
                target.close()
                raise StoreError(
                    f"{display(root)}: the unfinished copy there has {target.num_shards} shards, "
                    f"not {shards}; finish it with that number, or choose another place"
                )
        with target:
            return copying.copy_users(self, target, track)


@contextlib.contextmanager
def creating(root: Place) -> Iterator[None]:
    """Locks a local directory while a store is created in it."""
    directory = local_path(root)
    if directory is None:  # object stores: the last write is conditional
        yield
        return
    try:
        os.makedirs(directory, exist_ok=True)
    except OSError as error:
        raise StoreError(f"{directory}: cannot be created: {error}") from error
    lock = WriterLock(directory, "a store is created here")
    try:
        yield
    finally:
        lock.release()


def make_context(cache_bytes: int = CACHE_BYTES) -> ts.Context:
    """A context with a cache for tree nodes; `memory://` data is shared by the process."""
    return ts.Context({"cache_pool": {"total_bytes_limit": cache_bytes}}, process_context())
