"""The database of a shard: an OCDBT B+tree that maps keys to rows.

Why rows are values of an OCDBT database and not chunks of a zarr3 array: a B+tree needs no
second index from user id to row number (which would have to be loaded at open, kept in memory
and committed together with the row), deletes and lists keys, and reads one level less.
`python -m benchmarks.store` measures both beside each other (results/store.json).

Tree nodes and the manifest carry their own CRC-32C; values do not, hence the checksum of
`keys.encode_rows`. Transactions are `atomic` (others tore under kill -9) and `repeatable_read`
(a concurrent change of what was read aborts the commit instead of being lost).
"""

from collections.abc import Iterator, Sequence
from typing import TypeVar

import tensorstore as ts

from jaxrec.state_store.places import Place
from jaxrec.types import Json

T = TypeVar("T")

# A leaf of 8 KiB holds some 150 users: an update rewrites little, the tree stays shallow.
# Nodes are not compressed: with zstd a write takes two thirds more CPU time and saves 1 to 5 % of
# the bytes; and a search of the files shows whether an id is still there.
NODE_BYTES = 8192
# Values up to this size are stored in the leaf, under its checksum; the shard's status always is.
INLINE_BYTES = 384
FIRST_USER_KEY = b"\x00\x00"  # keys of users are longer than the one of the shard's status
USERS_PER_RANGE = 4096
PREFIXES = 1 << 16


def open_database(base: Place, context: ts.Context) -> ts.KvStore:
    """The database in directory `base`; files appear with the first commit."""
    spec = {
        "driver": "ocdbt",
        "base": base.spec,
        "config": {
            "max_decoded_node_bytes": NODE_BYTES,
            "max_inline_value_bytes": INLINE_BYTES,
            "compression": None,
        },
    }
    return ts.KvStore.open(spec, context=context).result()


def transaction() -> ts.Transaction:
    """A transaction that commits all or nothing, and only if nothing that it read has changed."""
    return ts.Transaction(atomic=True, repeatable_read=True)


def is_conflict(error: Exception) -> bool:
    """Whether a commit failed because another writer changed what it had read."""
    return str(error).startswith("ABORTED")


def commit(database: ts.KvStore, keys: Sequence[bytes], values: Sequence[bytes]) -> None:
    """Writes all pairs in one transaction, without looking at what was there."""
    writes = transaction()
    view = database.with_transaction(writes)
    for key, value in zip(keys, values, strict=True):
        view.write(key, value)
    writes.commit_sync()


def statistics(database: ts.KvStore) -> tuple[int, int]:
    """(keys, bytes of their values) of the newest version, read from the tree's root."""
    counts = _newest(database)["root"].get("statistics", {})
    tree = counts.get("num_tree_bytes", 0)
    return counts.get("num_keys", 0), counts.get("num_indirect_value_bytes", 0) + tree


def _newest(database: ts.KvStore) -> Json:
    """The newest version of the tree, as TensorStore describes it."""
    return ts.ocdbt.dump(_base(database)).result()["versions"][-1]


def _base(database: ts.KvStore) -> ts.KvStore:
    base = database.base
    if base is None:
        raise TypeError(f"{database}: not a database of `open_database`")
    return base


def num_ranges(keys: int) -> int:
    """The number of equal parts of the key space in which `keys` users are listed."""
    parts = 1
    while parts < PREFIXES and keys > parts * USERS_PER_RANGE:
        parts *= 2
    return parts


def list_range(database: ts.KvStore, index: int, parts: int) -> list[bytes]:
    """Keys of users in part `index` of `parts` (a power of two), in order."""
    step = PREFIXES // parts
    low = (index * step).to_bytes(2, "big") if index else FIRST_USER_KEY
    high = ((index + 1) * step).to_bytes(2, "big") if index + 1 < parts else b""
    return sorted(database.list(ts.KvStore.KeyRange(low, high)).result())


def batches(items: list[T], size: int) -> Iterator[list[T]]:
    """Consecutive slices of at most `size` items."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def locate(database: ts.KvStore, key: bytes) -> str:
    """The data file (relative to the database) that holds the value of `key`.

    For error messages: walks the tree from the root, whose keys are stored without the
    prefix that all keys of a subtree share.
    """
    root = _newest(database)
    location, height, prefix = root["root"]["location"], root["root_height"], b""
    while True:
        entries = ts.ocdbt.dump(_base(database), location).result()["entries"]
        below = [entry for entry in entries if prefix + entry["key"] <= key]
        if not below:
            return ""
        entry = below[-1]
        if height == 0:
            is_key = prefix + entry["key"] == key
            value = entry.get("indirect_value", location) if is_key else ""
            return value.partition("::")[2].rpartition(":")[0].rpartition(":")[0]
        prefix += entry["subtree_common_prefix"]
        location, height = entry["location"], height - 1
