"""One shard: a directory with a pointer to the current generation of its database.

    shard-00003/current           {"generation": "gen-5f0c…", "garbage": []}
    shard-00003/gen-5f0c…/        OCDBT database: manifest.ocdbt, d/*
    shard-00003/writer.lock       local disks: held by the writer, see lock.py

OCDBT never reclaims bytes. Compaction copies what is alive into a new generation, swaps the
pointer with one conditional write and deletes the old generation; a crash in between leaves
the old generation current, or the new one with garbage that the next writer deletes.

Every database holds a state key beside its users: {"sealed": null or {target, owner}, "applied":
{source: place}}. It is read with every access. Its absence tells a lost database from an unknown
user; a seal tells writers that a compaction is copying (they wait; a write that raced with the
seal aborts), and readers that they have to look whether the pointer has moved. The holder of a
local lock may ignore seals: nobody else can be compacting. `applied` tells how far the newest
sources of updates got (see marks.py): it changes in the transaction that writes their rows.
"""

import shutil
import uuid
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import tensorstore as ts

from jaxrec.errors import StoreError
from jaxrec.state_store import database as db
from jaxrec.state_store.keys import row_damage
from jaxrec.state_store.lock import WriterLock, owner
from jaxrec.state_store.marks import parse_status, status_bytes
from jaxrec.state_store.metadata import display, local_path, read_json, write_json

POINTER = "current"
STATE_KEY = b"\x00"
# A reader follows a moving pointer this often before it gives up: compactions of one shard
# follow each other seconds apart, reads take milliseconds.
READ_ATTEMPTS = 10

T = TypeVar("T")


class Generation(NamedTuple):
    """A database and the directory that holds it."""

    name: str
    database: ts.KvStore


class Shard:
    """A shard of an existing store; `create_shard` makes a new one."""

    def __init__(self, parent: ts.KvStore, index: int, context: ts.Context) -> None:
        self.index = index
        self.root = parent / f"{shard_name(index)}/"
        self.where = display(self.root)
        self._context = context
        self._lock: WriterLock | None = None
        self.current = self._open(self.pointer()[0]["generation"])

    # -- generations -----------------------------------------------------------------------

    def pointer(self) -> tuple[dict[str, Any], bytes]:
        """The pointer file and its version; raises StoreError when it is missing."""
        content, version = read_json(self.root, POINTER)
        if content is None:
            raise StoreError(
                f"{self.where}{POINTER}: missing; restore it from a snapshot or rebuild the store"
            )
        return content, version

    def refresh(self, used: Generation) -> bool:
        """Follows the pointer; True when it does not name `used` any more."""
        name = self.pointer()[0]["generation"]
        if name != self.current.name:
            self.current = self._open(name)
        return name != used.name

    def steady(self, look: Callable[[Generation], T]) -> T:
        """`look` at the current generation; once more when a compaction replaced it meanwhile.

        Raises StoreError naming the shard when the database is lost or cannot be read.
        """
        for _ in range(READ_ATTEMPTS):
            self.refresh(self.current)
            used = self.current
            try:
                self.parse_status(used.database.read(STATE_KEY).result())
                result, error = look(used), None
            except (ValueError, StoreError) as caught:
                error = caught
            if not self.refresh(used):
                if error is None:
                    return result
                if isinstance(error, StoreError):
                    raise error
                raise StoreError(f"{self.where}: {error}") from error
        raise StoreError(
            f"{self.where}: the current generation changed {READ_ATTEMPTS} times while it was "
            "read; is something compacting in a loop?"
        )

    def describe(self, used: Generation, key: bytes, error: ValueError) -> str:
        """The message of a failed read, with the file: TensorStore names it for nodes only."""
        try:
            return f"{self.where}{used.name}/{db.locate(used.database, key)}: {error}"
        except ValueError:  # the tree above the row is damaged, and `error` names that file
            return f"{self.where}: {error}"

    def _open(self, name: str) -> Generation:
        return Generation(name, db.open_database(self.root / f"{name}/", self._context))

    def _remove(self, name: str) -> None:
        """Deletes a generation that nothing points to."""
        directory = local_path(self.root)
        try:
            if directory is not None:  # also what an interrupted write left, which list() hides
                shutil.rmtree(f"{directory}{name}")
            else:
                end = f"{name}0"  # "0" follows "/"
                self.root.delete_range(ts.KvStore.KeyRange(f"{name}/", end)).result()
        except FileNotFoundError:
            return  # it never got a file
        except (OSError, ValueError) as error:
            raise StoreError(f"{self.where}{name}: cannot be deleted: {error}") from error

    # -- the writer ------------------------------------------------------------------------

    @property
    def locked(self) -> bool:
        """Whether this object holds the local lock."""
        return self._lock is not None

    def acquire(self) -> None:
        """Becomes the writer; on local disks refuses when there is another."""
        directory = local_path(self.root)
        if directory is not None:
            self._lock = WriterLock(directory)
        try:
            self.refresh(self.current)
            self._collect()
            left = self.status()["sealed"]
            if left is not None and self.locked:  # its compaction is dead: the lock was free
                self._remove(left["target"])
                self._seal(self.current, None)
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """The shard is open for reading only afterwards."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _collect(self) -> None:
        """Deletes the generations that a compaction left behind."""
        content, version = self.pointer()
        for name in content["garbage"]:
            self._remove(name)
        if content["garbage"]:
            write_json(self.root, POINTER, content | {"garbage": []}, version)

    # -- the state key ---------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """The shard's state; raises StoreError when the database is lost or unreadable."""
        return self._state()[0]

    def _state(self) -> tuple[dict[str, Any], bytes]:
        """The state and its version."""
        try:
            result = self.current.database.read(STATE_KEY).result()
        except ValueError as error:
            raise StoreError(f"{self.where}: {error}") from error
        return self.parse_status(result), result.stamp.generation

    def parse_status(self, result: ts.KvStore.ReadResult) -> dict[str, Any]:
        """The content of a state key that was read."""
        if result.state == "missing":
            raise StoreError(
                f"{self.where}{self.current.name}/manifest.ocdbt: missing, the shard's database "
                "is lost; restore it from a snapshot or rebuild the store"
            )
        try:
            return parse_status(result.value)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise StoreError(
                f"{self.where}{self.current.name}: the shard's state is damaged: {error}"
            ) from error

    def _seal(self, where: Generation, seal: dict[str, Any] | None) -> None:
        """Seals a generation for writers, or opens it again; what is applied stays."""
        for _ in range(READ_ATTEMPTS):
            status, version = self._state()
            # a writer elsewhere may change what is applied meanwhile
            same = version if where is self.current else None
            if _write_state(where.database, status | {"sealed": seal}, self.where, same):
                return
        raise StoreError(f"{self.where}: other writers kept changing the shard's state")

    # -- compaction ------------------------------------------------------------------------

    def compact(self, row_bytes: int, batch: int) -> None:
        """Copies the users that are alive into a new generation and deletes the old one.

        The caller is the shard's writer. Raises StoreError, with the old generation current
        and open for writing, when a row is damaged or the disk is full.
        """
        self.refresh(self.current)
        self._collect()
        old = self.current
        left = self.status()["sealed"]
        name = f"gen-{uuid.uuid4().hex[:16]}"
        self._seal(old, {"target": name, "owner": owner()})
        try:
            content, version = self.pointer()
            new = self._open(name)
            self._seal(new, None)
            self._copy(old, new, row_bytes, batch)
            # What another compaction left is deleted only once it cannot win any more.
            garbage = [old.name] + ([left["target"]] if left is not None else [])
            moved = {"generation": name, "garbage": garbage}
            if content["generation"] != old.name or not write_json(
                self.root, POINTER, moved, version
            ):
                raise StoreError(f"{self.where}: compacted by another process meanwhile")
        except BaseException:
            current = self.pointer()[0]["generation"]
            if current != name:
                self._remove(name)
            if current == old.name:
                self._seal(old, None)
            raise
        self.current = new
        self._collect()

    def _copy(self, old: Generation, new: Generation, row_bytes: int, batch: int) -> None:
        source = old.database
        try:
            parts = db.num_ranges(db.statistics(source)[0])
            for part in range(parts):
                for keys in db.batches(db.list_range(source, part, parts), batch):
                    commit(new.database, keys, self._intact(old, keys, row_bytes))
            if db.statistics(source)[0] != db.statistics(new.database)[0]:
                raise StoreError(f"{self.where}: the copy lost users; compaction was given up")
        except ValueError as error:
            raise StoreError(f"{self.where}: compaction failed: {error}") from error

    def _intact(self, old: Generation, keys: list[bytes], row_bytes: int) -> list[bytes]:
        """The values of keys; raises StoreError at the first that is damaged."""
        values = []
        for key, future in zip(keys, [old.database.read(key) for key in keys], strict=True):
            try:
                values.append(future.result().value)
                damage = row_damage(key, values[-1], row_bytes)
            except ValueError as error:
                raise StoreError(
                    f"{self.describe(old, key, error)}; compaction was given up: delete or "
                    "rewrite the users that `damaged()` lists"
                ) from error
            if damage:
                raise StoreError(
                    f"{self.where}{old.name}/{db.locate(old.database, key)}: a row cannot be "
                    f"copied ({damage}); compaction was given up: delete or rewrite the users "
                    "that `damaged()` lists"
                )
        return values


def commit(database: ts.KvStore, keys: list[bytes], values: list[bytes]) -> None:
    """Writes all pairs in one transaction, without looking at what was there."""
    transaction = db.transaction()
    view = database.with_transaction(transaction)
    for key, value in zip(keys, values, strict=True):
        view.write(key, value)
    transaction.commit_sync()


def shard_name(index: int) -> str:
    """Directory of a shard."""
    return f"shard-{index:05d}"


def create_shard(parent: ts.KvStore, index: int, context: ts.Context) -> None:
    """An empty shard; raises StoreError when there already is one with users.

    One without is what a creation that was killed left.
    """
    root = parent / f"{shard_name(index)}/"
    content, version = read_json(root, POINTER)
    if content is not None and _is_empty(root, content["generation"], context):
        return
    name = f"gen-{uuid.uuid4().hex[:16]}"
    if content is None:
        database = db.open_database(root / f"{name}/", context)
        _write_state(database, {"sealed": None, "applied": {}}, display(root))
    pointer = {"generation": name, "garbage": []}
    if content is not None or not write_json(root, POINTER, pointer, version):
        raise StoreError(
            f"{display(root)}: there already is a shard, but no store around it; "
            "choose an empty place, or delete this one if nothing in it is needed"
        )


def _is_empty(root: ts.KvStore, name: str, context: ts.Context) -> bool:
    """Whether a shard's database has its state and no user."""
    database = db.open_database(root / f"{name}/", context)
    try:
        return (
            database.read(STATE_KEY).result().state == "value"
            and db.statistics(database)[0] == 1  # the state itself
        )
    except ValueError as error:
        raise StoreError(f"{display(root)}: {error}") from error


def _write_state(
    database: ts.KvStore, status: dict[str, Any], where: str, if_equal: bytes | None = None
) -> bool:
    """False when the state is not of the version `if_equal` any more."""
    try:
        stamp = database.write(STATE_KEY, status_bytes(status), if_equal=if_equal).result()
        return bool(stamp.generation)
    except ValueError as error:
        raise StoreError(f"{where}: cannot be written: {error}") from error
