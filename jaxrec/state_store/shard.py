"""One shard: a directory with a pointer to the current generation of its database.

    shard-00003/current           {"generation": "gen-5f0c…", "garbage": []}
    shard-00003/gen-5f0c…/        OCDBT database: manifest.ocdbt, d/*
    shard-00003/writer.lock       local disks: held by the writer, see lock.py

OCDBT never reclaims bytes, so compaction.py copies the users that are alive into a new
generation, swaps the pointer and deletes the old generation. A crash in between leaves the old
generation current, or the new one with garbage that the next writer deletes.

Every database holds a status key beside its users (idempotency.py has its content). It is read
with every access.

- It names store and shard: a folder that was swapped or taken from another store is refused.
- A missing status means that the database is lost; a missing user alone is no error.
- Its seal tells writers that a compaction is copying: they wait, and a write that raced with the
  seal aborts. Readers then check whether the pointer has moved. The holder of a local lock may
  ignore a seal: no other process can be compacting.
- Its idempotency keys change in the transaction that writes the rows of their updates.
"""

import re
import shutil
import uuid
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import tensorstore as ts

from jaxrec.errors import StoreError
from jaxrec.state_store import database as db
from jaxrec.state_store.idempotency import Seal, ShardStatus
from jaxrec.state_store.lock import WriterLock
from jaxrec.state_store.metadata import read_json, write_json
from jaxrec.state_store.places import Place, display, local_path
from jaxrec.types import Json

POINTER_FILE = "current"
STATUS_KEY = b"\x00"
_GENERATION = re.compile(r"gen-[0-9a-f]{16}")  # see `new_generation_name`
# How often a reader follows a moving pointer before it gives up: compactions of one shard are
# seconds apart, reads take milliseconds.
READ_ATTEMPTS = 10

T = TypeVar("T")


class Generation(NamedTuple):
    """A database and the directory that holds it."""

    name: str
    database: ts.KvStore


class Pointer(NamedTuple):
    """Content of the pointer file: the current generation, and those that can be deleted."""

    generation: str
    garbage: list[str]


class Shard:
    """A shard of an existing store; `create_shard` creates a new one."""

    def __init__(self, parent: Place, index: int, store: str, context: ts.Context) -> None:
        """parent: of the shard's folder. store: identity of the store that the shard belongs to."""
        self.index, self.store = index, store
        self.root = parent / f"{shard_name(index)}/"
        self.where = display(self.root)
        self._context = context
        self._lock: WriterLock | None = None
        self.current = self.open_generation(self.pointer()[0].generation)

    # -- generations -----------------------------------------------------------------------

    def pointer(self) -> tuple[Pointer, bytes]:
        """The pointer and the version of its file.

        Raises StoreError when the file is missing or names anything but generations.
        """
        content, version = read_json(self.root, POINTER_FILE)
        if content is None:
            raise StoreError(
                f"{self.where}{POINTER_FILE}: missing; restore it from a snapshot or rebuild the "
                "store"
            )
        return _parse_pointer(content, f"{self.where}{POINTER_FILE}"), version

    def move_pointer(self, pointer: Pointer, version: bytes) -> bool:
        """Writes the pointer; False when its file is not of this version any more."""
        return write_json(self.root, POINTER_FILE, pointer._asdict(), version)

    def refresh(self, used: Generation) -> bool:
        """Follows the pointer; True when it does not name `used` any more."""
        name = self.pointer()[0].generation
        if name != self.current.name:
            self.current = self.open_generation(name)
        return name != used.name

    def consistent(self, look: Callable[[Generation], T]) -> T:
        """Calls `look` on the current generation, again when a compaction replaced it meanwhile.

        Raises StoreError naming the shard when the database is lost or cannot be read.
        """
        for _ in range(READ_ATTEMPTS):
            self.refresh(self.current)
            used = self.current
            try:
                self.parse_status(used.database.read(STATUS_KEY).result())
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

    def open_generation(self, name: str) -> Generation:
        """The generation of this name; a new one gets its files with the first commit."""
        return Generation(name, db.open_database(self.root / f"{name}/", self._context))

    def remove_generation(self, name: str) -> None:
        """Deletes a generation that nothing points to.

        Raises StoreError, with nothing deleted, when the name is not that of a generation, is that
        of the current one, or is a symbolic link.
        """
        if not _GENERATION.fullmatch(name) or name == self.pointer()[0].generation:
            raise StoreError(f"{self.where}: {name!r} is not a generation that may be deleted")
        directory = local_path(self.root)
        try:
            # rmtree refuses links, and deletes what an interrupted write left, which list() hides
            if directory is not None:
                shutil.rmtree(f"{directory}{name}")
            else:
                end = f"{name}0"  # "0" follows "/"
                self.root.kvstore.delete_range(ts.KvStore.KeyRange(f"{name}/", end)).result()
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
        """Becomes the writer; on local disks raises StoreError when there is another."""
        directory = local_path(self.root)
        if directory is not None:
            self._lock = WriterLock(directory)
        try:
            self.refresh(self.current)
            self.collect_garbage()
            stale = self.status().seal
            if stale is not None and self.locked:  # its compaction is dead: the lock was free
                self.remove_generation(stale.target)
                self.seal(self.current, None)
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """Gives up writing; the shard can still be read."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def collect_garbage(self) -> None:
        """Deletes the generations that a compaction left behind."""
        pointer, version = self.pointer()
        for name in pointer.garbage:
            self.remove_generation(name)
        if pointer.garbage:
            self.move_pointer(pointer._replace(garbage=[]), version)

    # -- the status key --------------------------------------------------------------------

    def status(self) -> ShardStatus:
        """The shard's status; raises StoreError when the database is lost or unreadable."""
        return self._read_status()[0]

    def _read_status(self) -> tuple[ShardStatus, bytes]:
        """The status and its version."""
        try:
            result = self.current.database.read(STATUS_KEY).result()
        except ValueError as error:
            raise StoreError(f"{self.where}: {error}") from error
        return self.parse_status(result), result.stamp.generation

    def parse_status(self, result: ts.KvStore.ReadResult) -> ShardStatus:
        """The status from the result of reading its key; raises StoreError."""
        if result.state == "missing":
            raise StoreError(
                f"{self.where}{self.current.name}/manifest.ocdbt: missing, the shard's database "
                "is lost; restore it from a snapshot or rebuild the store"
            )
        try:
            status = ShardStatus.from_bytes(result.value)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise StoreError(
                f"{self.where}{self.current.name}: the shard's status is damaged: {error}"
            ) from error
        if (status.store, status.shard) != (self.store, self.index):
            raise StoreError(
                f"{self.where}: this is shard {status.shard} of store {status.store}, not shard "
                f"{self.index} of store {self.store}: put it back where it came from, restore the "
                "store from a snapshot, or rebuild it"
            )
        return status

    def seal(self, generation: Generation, seal: Seal | None) -> None:
        """Seals a generation against other writers, or removes the seal (None).

        The applied updates are copied from the current generation's status.
        """
        for _ in range(READ_ATTEMPTS):
            status, version = self._read_status()
            # a writer elsewhere may apply an update meanwhile
            unchanged = version if generation is self.current else None
            if _write_status(
                generation.database, status._replace(seal=seal), self.where, unchanged
            ):
                return
        raise StoreError(f"{self.where}: other writers kept changing the shard's status")


def shard_name(index: int) -> str:
    """Directory of a shard."""
    return f"shard-{index:05d}"


def new_generation_name() -> str:
    """A random name that no other generation has."""
    return f"gen-{uuid.uuid4().hex[:16]}"


def _parse_pointer(content: Json, where: str) -> Pointer:
    """The content of a pointer file; raises StoreError unless it names generations alone."""
    garbage = content.get("garbage") if isinstance(content, dict) else None
    names = [content.get("generation"), *garbage] if isinstance(garbage, list) else []
    valid = all(isinstance(name, str) and _GENERATION.fullmatch(name) for name in names)
    if not names or not valid or names[0] in names[1:]:
        raise StoreError(
            f"{where}: not a pointer to generations of this shard ({str(content)[:200]}), nothing "
            "was deleted; restore it from a snapshot or rebuild the store"
        )
    return Pointer(names[0], names[1:])


def create_shard(parent: Place, index: int, store: str, context: ts.Context) -> None:
    """Creates an empty shard; raises StoreError when there already is one with users.

    store: identity of the store. An empty shard, as a killed `create` leaves, becomes one of it.
    """
    status = ShardStatus(store, index)
    root = parent / f"{shard_name(index)}/"
    content, version = read_json(root, POINTER_FILE)
    if content is not None:
        current = _parse_pointer(content, display(root, POINTER_FILE)).generation
        if _is_empty(root, current, context):
            _write_status(db.open_database(root / f"{current}/", context), status, display(root))
            return
    name = new_generation_name()
    if content is None:
        database = db.open_database(root / f"{name}/", context)
        _write_status(database, status, display(root))
    pointer = Pointer(generation=name, garbage=[])
    if content is not None or not write_json(root, POINTER_FILE, pointer._asdict(), version):
        raise StoreError(
            f"{display(root)}: there already is a shard, but no store around it; "
            "choose an empty place, or delete this one if nothing in it is needed"
        )


def _is_empty(root: Place, name: str, context: ts.Context) -> bool:
    """Whether a shard's database has its status and no user."""
    database = db.open_database(root / f"{name}/", context)
    try:
        return (
            database.read(STATUS_KEY).result().state == "value"
            and db.statistics(database)[0] == 1  # the status itself
        )
    except ValueError as error:
        raise StoreError(f"{display(root)}: {error}") from error


def _write_status(
    database: ts.KvStore, status: ShardStatus, where: str, if_equal: bytes | None = None
) -> bool:
    """Writes the status; False when its version is no longer `if_equal`."""
    try:
        stamp = database.write(STATUS_KEY, status.to_bytes(), if_equal=if_equal).result()
        return bool(stamp.generation)
    except ValueError as error:
        raise StoreError(f"{where}: cannot be written: {error}") from error
