"""What the service appended and forgot, on disk: idempotency keys, and events for a new store.

A folder beside the store with two files of JSON lines. The older one goes away when the newer one
is full, so the newest `FILE_BYTES` to twice as many are remembered. Lines:

    {"begin": N, "source": ..., "batch": ..., "appends": [{"key", "digest", "columns"}, ...]}
    {"done": N, "counts": [[...] or null, ...]}     null: finished after a crash, counts are unknown
    {"abort": N}                                    nothing of it was written
    {"delete": [user, ...]}

An append is synced here before the store is changed, and the store remembers its source. So after
a kill the one that was begun is finished exactly once, before anything else.
"""

import dataclasses
import hashlib
import io
import json
import os
import pathlib
import uuid
from collections.abc import Iterable, Iterator, Sequence

from jaxrec.errors import StoreError
from jaxrec.server.errors import ServiceError
from jaxrec.types import ItemId, Json, UserId
from jaxrec.untrusted import json_objects

FILE_BYTES = 32 << 20
CURRENT, PREVIOUS = "current.jsonl", "previous.jsonl"
# events, users, unknown_items, late, repeated
Counts = tuple[int, int, int, int, int]


@dataclasses.dataclass(frozen=True)
class Columns:
    """Events as they came: raw ids and seconds since 1970, of equal length."""

    users: list[UserId]
    items: list[ItemId]
    times: list[float]

    @property
    def digest(self) -> str:
        """32 hex digits of the content."""
        text = json.dumps(dataclasses.astuple(self), separators=(",", ":"))
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


@dataclasses.dataclass(frozen=True)
class Entry:
    """An append of a client. key: empty without one."""

    key: str
    digest: str
    columns: Columns


@dataclasses.dataclass(frozen=True)
class Group:
    """Appends that are written together; batch: users of one update of the store."""

    number: int
    source: str
    batch: int
    entries: Sequence[Entry]


class Journal:
    """The journal of one store; the holder of the store's lock writes it.

    unfinished: a group that was begun and is not known to be written.
    """

    def __init__(self, folder: pathlib.Path, file_bytes: int = FILE_BYTES) -> None:
        """Reads what is there. Raises StoreError naming a file that cannot be read."""
        self.folder, self.file_bytes = folder, file_bytes
        self.unfinished: Group | None = None
        self._number = 0
        # key -> (digest, counts), of the older and the newer file
        self._keys: list[dict[str, tuple[str, Counts | None]]] = [{}, {}]
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for keys, name in zip(self._keys, (PREVIOUS, CURRENT), strict=True):
                self._read(folder / name, keys)
            self._file = _open(folder)
        except OSError as error:
            raise StoreError(f"{folder}: the journal cannot be used: {error}") from error

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    # -- writing -----------------------------------------------------------------------------

    def begin(self, entries: Sequence[Entry], batch: int) -> Group:
        """Makes appends durable here, before they are written to the store."""
        group = Group(self._number + 1, uuid.uuid4().hex[:12], batch, entries)
        appends = [dataclasses.asdict(entry) for entry in entries]
        line = {"begin": group.number, "source": group.source, "batch": batch, "appends": appends}
        self._write(line, sync=True)
        self._number, self.unfinished = group.number, group
        return group

    def done(self, group: Group, counts: Sequence[Counts | None]) -> None:
        """The store has the group."""
        self._write({"done": group.number, "counts": list(counts)})
        self._finish(group, counts, self._keys[1])
        if os.fstat(self._file.fileno()).st_size > self.file_bytes:
            self._rotate()

    def abort(self, group: Group) -> None:
        """Nothing of the group was written."""
        self._write({"abort": group.number})
        self.unfinished = None

    def delete(self, users: Sequence[UserId]) -> None:
        """Users are about to be forgotten: their events before this do not count."""
        self._write({"delete": list(users)}, sync=True)

    def copy_to(self, folder: pathlib.Path) -> "Journal":
        """The same journal at another place, which it replaces. Nothing may be unfinished."""
        assert self.unfinished is None
        folder.mkdir(parents=True, exist_ok=True)
        for name in (PREVIOUS, CURRENT):
            if (self.folder / name).exists():
                with open(folder / f"{name}.tmp", "wb") as file:
                    file.write((self.folder / name).read_bytes())
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(folder / f"{name}.tmp", folder / name)
        return Journal(folder, self.file_bytes)

    # -- reading -----------------------------------------------------------------------------

    def find(self, key: str, digest: str) -> tuple[Counts | None] | None:
        """The counts of an append that has this key, in a tuple; None for a new key.

        Raises ServiceError when the key came with other events.
        """
        for keys in self._keys:
            if key in keys:
                known, counts = keys[key]
                if known != digest:
                    raise ServiceError(
                        422,
                        f"idempotency_key {key!r}: other events came with it before; use a new "
                        "key for new events",
                    )
                return (counts,)
        return None

    def events(self) -> Iterator[Columns | list[UserId]]:
        """What was written, oldest first: events of an append, or users that were forgotten."""
        begun: dict[int, list[Columns]] = {}
        found: list[Columns | list[UserId]]
        for name in (PREVIOUS, CURRENT):
            for line in _lines(self.folder / name):
                with json_objects.taken_apart(self.folder / name, _damaged):
                    if "begin" in line:
                        entries = (_entry(entry) for entry in line["appends"])
                        begun[line["begin"]] = [entry.columns for entry in entries]
                        continue
                    found = [line["delete"]] if "delete" in line else []
                    if "done" in line:
                        found += begun.pop(line["done"], [])
                yield from found

    # -- inside ------------------------------------------------------------------------------

    def _read(self, file: pathlib.Path, keys: dict[str, tuple[str, Counts | None]]) -> None:
        for line in _lines(file, repair=True):
            with json_objects.taken_apart(file, _damaged):
                self._read_line(line, keys)

    def _read_line(self, line: Json, keys: dict[str, tuple[str, Counts | None]]) -> None:
        if "begin" in line:
            entries = [_entry(entry) for entry in line["appends"]]
            self.unfinished = Group(line["begin"], line["source"], line["batch"], entries)
            self._number = line["begin"]
        elif "done" in line and self.unfinished is not None:
            self._finish(self.unfinished, line["counts"], keys)
        elif "abort" in line:
            self.unfinished = None

    def _finish(
        self,
        group: Group,
        counts: Iterable[Sequence[int] | None],
        keys: dict[str, tuple[str, Counts | None]],
    ) -> None:
        for entry, count in zip(group.entries, counts, strict=True):
            if entry.key:
                keys[entry.key] = entry.digest, None if count is None else (*count,)  # type: ignore[assignment]
        self.unfinished = None

    def _write(self, line: Json, sync: bool = False) -> None:
        """One more line, or none: half a line would make the next one unreadable."""
        left = memoryview(json.dumps(line, separators=(",", ":")).encode() + b"\n")
        end = os.fstat(self._file.fileno()).st_size
        try:
            while left:
                left = left[self._file.write(left) :]
            if sync:
                os.fsync(self._file.fileno())
        except OSError as error:
            os.truncate(self._file.fileno(), end)
            raise StoreError(f"{self.folder / CURRENT}: cannot be written: {error}") from error

    def _rotate(self) -> None:
        self._file.close()
        os.replace(self.folder / CURRENT, self.folder / PREVIOUS)
        self._file = _open(self.folder)
        self._keys = [self._keys[1], {}]


def _open(folder: pathlib.Path) -> io.FileIO:
    """The file that is written, without a buffer: what has been written survives a kill."""
    return open(folder / CURRENT, "ab", buffering=0)


def _lines(file: pathlib.Path, repair: bool = False) -> Iterator[Json]:
    """The lines of a file. A last line without an end was cut by a kill: nobody relied on it.

    repair: cut it off. Raises StoreError naming a damaged line.
    """
    try:
        stream = file.open("rb")
    except FileNotFoundError:
        return
    with stream:
        for number, line in enumerate(stream, 1):
            if not line.endswith(b"\n"):
                if repair:
                    os.truncate(file, stream.tell() - len(line))
                return
            yield json_objects.parse(line, f"{file}: line {number}", _damaged)


def _damaged(text: str) -> StoreError:
    return StoreError(
        f"{text}; move the folder away to start without what it remembers (idempotency keys, and "
        "events for a new store)"
    )


def _entry(content: Json) -> Entry:
    return Entry(content["key"], content["digest"], Columns(**content["columns"]))
