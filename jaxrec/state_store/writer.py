"""Writing a store: durable, atomic per shard, only in shards whose lock is held.

`store.py` adds opening and copying, and documents the guarantees.
"""

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Self, TypeAlias

import numpy as np
import tensorstore as ts

from jaxrec.errors import StoreError
from jaxrec.state_store import access, compaction
from jaxrec.state_store import database as db
from jaxrec.state_store.idempotency import IdempotencyKey
from jaxrec.state_store.keys import UserIds, encode_ids, encode_rows, id_list, shard_numbers
from jaxrec.state_store.metadata import Metadata
from jaxrec.state_store.places import Place, display
from jaxrec.state_store.reader import StoreReader
from jaxrec.state_store.row_format import Columns
from jaxrec.types import UserId

# (user ids, their columns, known [B] bool) -> new columns; called again after a conflict
UpdateFn: TypeAlias = Callable[[list[UserId], Columns, np.ndarray], Mapping[str, np.ndarray]]

# One transaction holds its rows in memory until it is committed.
COMMIT_BYTES = 32 << 20


class StoreWriter(StoreReader):
    """The writing half of `UserStateStore`: holds the locks of `owned` shards."""

    def __init__(
        self,
        root: Place,
        metadata: Metadata,
        mode: str,
        shards: Iterable[int] | None,
        context: ts.Context,
    ) -> None:
        """Use `UserStateStore.create` or `open`."""
        super().__init__(root, metadata, context)
        chosen = range(self.num_shards) if shards is None else sorted(set(shards))
        if any(not 0 <= index < self.num_shards for index in chosen):
            raise ValueError(f"shards={list(chosen)}: the store has 0 to {self.num_shards - 1}")
        self.owned: frozenset[int] = frozenset(chosen) if mode == "w" else frozenset()
        with contextlib.ExitStack() as acquired:
            for index in sorted(self.owned):
                self._shards[index].acquire()
                acquired.callback(self._shards[index].release)
            self._held = acquired.pop_all()

    def __repr__(self) -> str:
        mode = f"writing {len(self.owned)}" if self.owned else "reading"
        return f"{type(self).__name__}({display(self.root)}, {mode} of {self.num_shards} shards)"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:
            self._staged.clear()  # these rows were never acknowledged
        self.close()

    def close(self) -> None:
        """Flushes and gives the shards back; the store can still be read."""
        with self._writing:
            try:
                self.flush()
            finally:
                self.owned = frozenset()
                self._held.close()

    def owns(self, user_ids: Sequence[UserId] | np.ndarray) -> np.ndarray:
        """bool [B]: users whose shard is open for writing here."""
        owned, step = sorted(self.owned), 65536  # users whose keys are in memory at a time
        masks = [
            np.isin(self.shard_of(user_ids[start : start + step]), owned)
            for start in range(0, len(user_ids), step)
        ]
        return np.concatenate([np.zeros(0, bool), *masks])

    # -- users -------------------------------------------------------------------------------

    def write(
        self, user_ids: UserIds, columns: Mapping[str, np.ndarray], durable: bool = True
    ) -> None:
        """Puts one row per user; of a user that occurs several times the last row counts.

        durable=False keeps the rows in memory, visible to this object's reads only, until
        `flush` (called on the way when they exceed 32 MiB): many small batches, one commit.
        """
        ids = id_list(user_ids)
        rows = self.spec.pack(columns)
        if len(rows) != len(ids):
            raise ValueError(f"{len(ids)} user ids for {len(rows)} rows")
        keys, hashes = encode_ids(ids)
        self._check_owned(ids, hashes)
        values = encode_rows(keys, rows)
        with self._writing:
            if durable:
                self.flush()
                last = dict(zip(keys, zip(ids, values, strict=True), strict=True))
                for batch in db.batches(list(last), self._rows_per_commit):
                    self._put(batch, [last[key] for key in batch])
                return
            self._staged.update(zip(keys, zip(ids, values, strict=True), strict=True))
            if len(self._staged) * self.spec.row_bytes > COMMIT_BYTES:
                self.flush()

    def flush(self) -> None:
        """Makes all rows of `write(durable=False)` durable.

        After an error the rows that could not be written are still staged.
        """
        with self._writing:
            for keys in db.batches(list(self._staged), self._rows_per_commit):
                try:
                    self._put(keys, [self._staged[key] for key in keys])
                except StoreError as error:
                    self._unstage(keys, set(error.users))
                    raise
                self._unstage(keys, set())

    def update(
        self,
        user_ids: UserIds,
        fn: UpdateFn,
        *,
        idempotency_key: tuple[str, int] | None = None,
    ) -> None:
        """Replaces the rows of distinct users by `fn(user_ids, columns, known)`; durable.

        When another writer changes one of the rows between reading and writing, nothing of its
        shard is written, and `fn` is called again for these users with the new rows.

        idempotency_key: (source, number) of an update that may be repeated after a failure. A
        shard applies it once: `fn` is not called for shards that have applied it. The numbers
        of a source must ascend, the users of each number must always be the same, and a shard
        remembers its three newest sources.
        """
        ids = id_list(user_ids)
        if len(set(ids)) < len(ids):
            raise ValueError("update: a user occurs twice; merge its changes before")
        all_keys, hashes = encode_ids(ids)
        self._check_owned(ids, hashes)
        with self._writing:
            self.flush()
            for batch in db.batches(list(range(len(ids))), self._rows_per_commit):
                batch_ids, keys = [ids[i] for i in batch], [all_keys[i] for i in batch]
                key = None
                if idempotency_key is not None:
                    source, number = idempotency_key
                    key = IdempotencyKey(source, (number, batch[0]))

                def decide(
                    positions: list[int],
                    old: list[bytes | None],
                    batch_ids: list[UserId] = batch_ids,
                    keys: list[bytes] = keys,
                ) -> Sequence[bytes | None]:
                    users = [batch_ids[position] for position in positions]
                    user_keys = [keys[position] for position in positions]
                    rows = self.spec.pack(fn(users, *self._columns(users, user_keys, old)))
                    if len(rows) != len(users):
                        raise ValueError(f"update: {len(rows)} rows for {len(users)} users")
                    return encode_rows(user_keys, rows)

                self._transact(batch_ids, keys, decide, idempotency_key=key)

    def delete(self, user_ids: UserIds) -> np.ndarray:
        """Forgets users; returns bool [B], which existed. `compact` then removes their bytes."""
        ids = id_list(user_ids)
        distinct = list(dict.fromkeys(ids))
        all_keys, hashes = encode_ids(distinct)
        self._check_owned(distinct, hashes)
        existed: set[UserId] = set()
        with self._writing:
            self.flush()
            for batch in db.batches(list(range(len(distinct))), self._rows_per_commit):
                batch_ids, keys = [distinct[i] for i in batch], [all_keys[i] for i in batch]

                def decide(
                    positions: list[int],
                    old: list[bytes | None],
                    batch_ids: list[UserId] = batch_ids,
                ) -> list[bytes | None]:
                    for position, value in zip(positions, old, strict=True):
                        if value is not None:
                            existed.add(batch_ids[position])
                    return [None] * len(positions)

                self._transact(batch_ids, keys, decide)
        return np.array([user_id in existed for user_id in ids], bool)

    # -- the whole store -----------------------------------------------------------------------

    def compact(self, shards: Iterable[int] | None = None) -> None:
        """Rewrites shards without the bytes of deleted users and replaced rows.

        Needs free space for one shard's live rows. A crash leaves the old rows readable.
        """
        with self._writing:
            self.flush()
            for index in sorted(self.owned) if shards is None else shards:
                if index not in self.owned:
                    raise StoreError(f"{self._shards[index].where}: not open for writing here")
                compaction.compact(self._shards[index], self.spec.row_bytes, self._rows_per_commit)

    # -- inside --------------------------------------------------------------------------------

    @property
    def _rows_per_commit(self) -> int:
        return max(1, COMMIT_BYTES // self.spec.row_bytes)

    def _check_owned(self, ids: list[UserId], hashes: np.ndarray) -> None:
        """Raises StoreError when a user's shard is not held for writing."""
        numbers = shard_numbers(hashes, self.num_shards)
        foreign = np.flatnonzero(~np.isin(numbers, sorted(self.owned))).tolist()
        if foreign:
            shard = self._shards[int(numbers[foreign[0]])]
            raise StoreError(
                f"{shard.where}: not open for writing here (user {ids[foreign[0]]!r} and "
                f"{len(foreign) - 1} others); open the store with mode='w' and this shard",
                [ids[position] for position in foreign],
            )

    def _unstage(self, keys: list[bytes], unwritten: set[UserId]) -> None:
        for key in keys:
            if self._staged[key][0] not in unwritten:
                del self._staged[key]

    def _put(self, keys: list[bytes], rows: list[tuple[UserId, bytes]]) -> None:
        """Replaces the values of keys without reading them first. rows: (user id, value)."""
        self._transact(
            [user_id for user_id, _ in rows],
            keys,
            lambda positions, old: [rows[position][1] for position in positions],
            read_first=False,
        )

    def _transact(
        self,
        ids: list[UserId],
        keys: list[bytes],
        decide: access.Decide,
        *,
        read_first: bool = True,
        idempotency_key: IdempotencyKey | None = None,
    ) -> None:
        jobs = self._jobs(keys, encode_ids(ids)[1])
        try:
            access.transact(jobs, decide, read_first=read_first, idempotency_key=idempotency_key)
        except access.AccessError as error:
            unwritten = [ids[position] for position in error.positions]
            raise StoreError(str(error), unwritten) from error
