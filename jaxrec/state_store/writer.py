"""Writing a store: durable, atomic per shard, only in shards whose lock is held.

`store.py` adds opening and copying, and says what is promised.
"""

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np
import tensorstore as ts

from jaxrec.errors import StoreError
from jaxrec.state_store import access
from jaxrec.state_store import database as db
from jaxrec.state_store.keys import encode_ids, id_list, seal_rows, shard_numbers
from jaxrec.state_store.marks import Mark
from jaxrec.state_store.metadata import Metadata, display
from jaxrec.state_store.reader import StoreReader
from jaxrec.state_store.rows import Columns
from jaxrec.types import UserId

# (user ids, their columns, found [B] bool) -> new columns; called again after a conflict
UpdateFn = Callable[[list[UserId], Columns, np.ndarray], Mapping[str, Any]]

# One transaction holds its rows in memory until it is committed.
COMMIT_BYTES = 32 << 20


class StoreWriter(StoreReader):
    """The writing half of `UserStateStore`: holds the locks of `owned` shards."""

    def __init__(
        self,
        root: ts.KvStore,
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

    def owns(self, user_ids: Sequence[Any] | np.ndarray) -> np.ndarray:
        """bool [B]: whose shard is held for writing."""
        owned, step = sorted(self.owned), 65536  # keys of so many users in memory
        parts = [
            np.isin(self.shard_of(user_ids[start : start + step]), owned)
            for start in range(0, len(user_ids), step)
        ]
        return np.concatenate([np.zeros(0, bool), *parts])

    # -- users -------------------------------------------------------------------------------

    def write(
        self, user_ids: Iterable[Any], columns: Mapping[str, Any], durable: bool = True
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
        values = seal_rows(keys, rows)
        with self._writing:
            if durable:
                self.flush()
                last = dict(zip(keys, zip(ids, values, strict=True), strict=True))
                for part in db.batches(list(last), self._rows_per_commit):
                    self._put(part, [last[key] for key in part])
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
        self, user_ids: Iterable[Any], fn: UpdateFn, mark: tuple[str, int] | None = None
    ) -> None:
        """Replaces the rows of distinct users by `fn(user_ids, columns, found)`; durable.

        When somebody else changes one of the rows between reading and writing, nothing of its
        shard is written and `fn` is asked again about these users with the new rows.
        mark: (source, number) of an update that may be repeated after a failure. A shard takes
        it once: where its rows are written already `fn` is not asked. The numbers of a source
        ascend, the users of each are always the same, and the newest three sources of a shard
        are remembered.
        """
        ids = id_list(user_ids)
        if len(set(ids)) < len(ids):
            raise ValueError("update: a user occurs twice; merge its changes before")
        all_keys, hashes = encode_ids(ids)
        self._check_owned(ids, hashes)
        with self._writing:
            self.flush()
            for part in db.batches(list(range(len(ids))), self._rows_per_commit):
                names, keys = [ids[i] for i in part], [all_keys[i] for i in part]
                place = None if mark is None else Mark(mark[0], (mark[1], part[0]))

                def decide(
                    positions: list[int],
                    old: list[bytes | None],
                    names: list[UserId] = names,
                    keys: list[bytes] = keys,
                ) -> Sequence[bytes | None]:
                    asked = [names[position] for position in positions]
                    theirs = [keys[position] for position in positions]
                    rows = self.spec.pack(fn(asked, *self._columns(asked, theirs, old)))
                    if len(rows) != len(asked):
                        raise ValueError(f"update: {len(rows)} rows for {len(asked)} users")
                    return seal_rows(theirs, rows)

                self._transact(names, keys, decide, mark=place)

    def delete(self, user_ids: Iterable[Any]) -> np.ndarray:
        """Forgets users; bool [B]: which existed. Their bytes go with the next `compact`."""
        ids = id_list(user_ids)
        distinct = list(dict.fromkeys(ids))
        all_keys, hashes = encode_ids(distinct)
        self._check_owned(distinct, hashes)
        existed: set[UserId] = set()
        with self._writing:
            self.flush()
            for part in db.batches(list(range(len(distinct))), self._rows_per_commit):
                names, keys = [distinct[i] for i in part], [all_keys[i] for i in part]

                def decide(
                    positions: list[int],
                    old: list[bytes | None],
                    names: list[UserId] = names,
                ) -> list[bytes | None]:
                    for position, value in zip(positions, old, strict=True):
                        if value is not None:
                            existed.add(names[position])
                    return [None] * len(positions)

                self._transact(names, keys, decide)
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
                self._shards[index].compact(self.spec.row_bytes, self._rows_per_commit)

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
        """Replaces the values of keys without looking at what is there."""
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
        read_first: bool = True,
        mark: Mark | None = None,
    ) -> None:
        jobs = self._jobs(keys, encode_ids(ids)[1])
        try:
            access.transact(jobs, decide, read_first, mark)
        except access.AccessError as error:
            lost = [ids[position] for position in error.positions]
            raise StoreError(str(error), lost) from error
