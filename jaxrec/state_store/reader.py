"""Reading a store, which needs no lock. `writer.py` adds writing, `store.py` opening.

Every row that is returned is whole, passed its checksum and was current during the call, also
while other processes write or compact.
"""

import os
import threading
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import tensorstore as ts

from jaxrec.errors import StoreError
from jaxrec.state_store import access
from jaxrec.state_store import database as db
from jaxrec.state_store.keys import (
    UserIds,
    decode_key,
    decode_rows,
    encode_ids,
    id_list,
    row_damage,
    shard_numbers,
)
from jaxrec.state_store.metadata import Metadata
from jaxrec.state_store.places import Place, display, local_path
from jaxrec.state_store.row_format import Columns
from jaxrec.state_store.shard import Shard
from jaxrec.types import UserId

NAMED_USERS = 5  # damaged users that a message names


class ShardStat(NamedTuple):
    """Size of a shard.

    users: how many. live_bytes: of rows and tree. disk_bytes: of files, None where it cannot be
    known.
    """

    users: int
    live_bytes: int
    disk_bytes: int | None


class StoreReader:
    """The reading half of `UserStateStore`."""

    def __init__(self, root: Place, metadata: Metadata, context: ts.Context) -> None:
        self.root = root
        self.metadata = metadata
        self.spec = metadata.spec
        self.num_shards = metadata.num_shards
        self._shards = [
            Shard(root, index, metadata.identity, context) for index in range(self.num_shards)
        ]
        # a writer's rows that are not durable yet: key -> (id, value)
        self._staged: dict[bytes, tuple[UserId, bytes]] = {}
        self._writing = threading.RLock()

    def flush(self) -> None:
        """Does nothing: only a writer has rows that are not durable yet."""

    def shard_of(self, user_ids: UserIds) -> np.ndarray:
        """int64 [B]: the shard of each user; stable for ever."""
        return shard_numbers(encode_ids(id_list(user_ids))[1], self.num_shards)

    def read(self, user_ids: UserIds) -> tuple[Columns, np.ndarray]:
        """(columns [B, ...], known bool [B]); rows of unknown users are zero.

        A user may occur several times. Raises StoreError naming shard, file and users when
        stored bytes are damaged.
        """
        ids = id_list(user_ids)
        keys, hashes = encode_ids(ids)
        return self._columns(ids, keys, self._fetch(ids, keys, hashes))

    def iterate(
        self, batch: int = 1024, shards: Iterable[int] | None = None
    ) -> Iterator[tuple[list[UserId], Columns]]:
        """All users in a fixed order, at most `batch` at a time: (ids, columns).

        No snapshot: every row is whole, users written or deleted meanwhile may be missed.
        """
        for index in range(self.num_shards) if shards is None else shards:
            for part in range(parts := self.num_ranges(index)):
                yield from self.iterate_range(index, part, parts, batch)

    def iterate_range(
        self, shard: int, part: int, parts: int, batch: int
    ) -> Iterator[tuple[list[UserId], Columns]]:
        """`iterate` over one of `parts` equal parts of a shard's keys (see `num_ranges`)."""
        for keys in db.batches(self._list(shard, part, parts), batch):
            ids = [decode_key(key) for key in keys]
            values = self._fetch(ids, keys, encode_ids(ids)[1])
            alive = [i for i, value in enumerate(values) if value is not None]
            if alive:
                ids, keys = [ids[i] for i in alive], [keys[i] for i in alive]
                yield ids, self._columns(ids, keys, [values[i] for i in alive])[0]

    def users(self) -> Iterator[list[UserId]]:
        """Ids of all users, a part of a shard at a time; reads no rows."""
        for index in range(self.num_shards):
            for part in range(parts := self.num_ranges(index)):
                yield [decode_key(key) for key in self._list(index, part, parts)]

    def damaged(self) -> Iterator[tuple[UserId, str]]:
        """(user, error message) of every row that cannot be read: write or delete these.

        Raises StoreError where the tree itself is damaged, so that users cannot be listed.
        """
        for listed in self.users():
            for ids in db.batches(listed, 1024):
                try:
                    self.read(ids)
                except StoreError:
                    yield from self._damaged_of(ids)

    def _damaged_of(self, ids: list[UserId]) -> Iterator[tuple[UserId, str]]:
        for user_id in ids:
            try:
                self.read([user_id])
            except StoreError as error:
                yield user_id, str(error)

    def stat(self) -> list[ShardStat]:
        """Size of every shard; reads only the roots of the trees."""
        self.flush()
        stats = []
        for shard in self._shards:
            keys, live = shard.consistent(lambda generation: db.statistics(generation.database))
            directory = local_path(shard.root)
            disk = None if directory is None else _disk_bytes(directory)
            stats.append(ShardStat(keys - 1, live, disk))  # one key is the shard's status
        return stats

    def num_ranges(self, shard: int) -> int:
        """In how many parts a shard is listed: each holds some 4,096 users."""
        self.flush()
        keys = self._shards[shard].consistent(lambda g: db.statistics(g.database)[0])
        return db.num_ranges(keys)

    # -- inside ----------------------------------------------------------------------------

    def _list(self, shard: int, part: int, parts: int) -> list[bytes]:
        """Keys of one part of a shard; parts do not depend on the generation."""
        return self._shards[shard].consistent(lambda g: db.list_range(g.database, part, parts))

    def _jobs(self, keys: list[bytes], hashes: np.ndarray) -> list[access.Job]:
        numbers = shard_numbers(hashes, self.num_shards)
        jobs = []
        for index in np.unique(numbers):
            positions = np.flatnonzero(numbers == index).tolist()
            jobs.append(access.Job(self._shards[index], positions, [keys[p] for p in positions]))
        return jobs

    def _fetch(
        self, ids: list[UserId], keys: list[bytes], hashes: np.ndarray
    ) -> list[bytes | None]:
        """Stored values, None of unknown users; staged ones are newer than those on disk."""
        staged = {k: pair[1] for k in keys if (pair := self._staged.get(k)) is not None}
        try:
            values = access.read(self._jobs(keys, hashes), len(keys))
        except access.AccessError as error:
            raise StoreError(str(error), [ids[p] for p in error.positions]) from error
        if staged:
            values = [staged.get(k, value) for k, value in zip(keys, values, strict=True)]
        return values

    def _columns(
        self, ids: list[UserId], keys: list[bytes], values: list[bytes | None]
    ) -> tuple[Columns, np.ndarray]:
        """Checked values -> (columns [B, ...], known bool [B])."""
        damaged = [
            (position, damage)
            for position, value in enumerate(values)
            if value is not None
            and (damage := row_damage(keys[position], value, self.spec.row_bytes))
        ]
        if damaged:
            position, damage = damaged[0]
            named = ", ".join(repr(ids[p]) for p, _ in damaged[:NAMED_USERS])
            more = ", ..." if len(damaged) > NAMED_USERS else ""
            raise StoreError(
                f"{self._file_of(keys[position])}: the stored rows of {len(damaged)} users are "
                f"damaged ({named}{more}): {damage}; write them again, delete them, or restore "
                "them from a snapshot",
                [ids[p] for p, _ in damaged],
            )
        known = np.array([value is not None for value in values], bool)
        rows = np.zeros((len(values), self.spec.row_bytes), np.uint8)
        if known.any():
            stored = [value for value in values if value is not None]
            rows[known] = decode_rows(stored, self.spec.row_bytes)
        return self.spec.unpack(rows), known

    def _file_of(self, key: bytes) -> str:
        """The file that holds a row, for messages."""
        user = encode_ids([decode_key(key)])[1]
        shard = self._shards[int(shard_numbers(user, self.num_shards)[0])]
        return f"{shard.where}{shard.current.name}/{db.locate(shard.current.database, key)}"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({display(self.root)}, {self.num_shards} shards)"


def _disk_bytes(directory: str) -> int:
    """Bytes of all files below, those of unfinished writes included."""
    total = 0
    for folder, _, names in os.walk(directory):
        for name in names:
            try:
                total += os.stat(os.path.join(folder, name)).st_size
            except FileNotFoundError:  # a compaction deleted it meanwhile: it takes no bytes
                continue
    return total
