"""Snapshots: a model and its users' states as one step beside the run.

    <folder>/<step>/record.json     what is there; written last: without it there is no snapshot
    <folder>/<step>/model/          the run's config, catalog and parameters: `Recommender.load`
    <folder>/<step>/states/00000/   Orbax checkpoint of one part: at most some 4,096 users

A part holds `rows` uint8 [U, row_bytes] in chunks of a few users, `crc` uint32 [U] of key and
row, and the users' keys. Orbax keeps no checksum of what it stores: rows are checked when they
are read. Memory is bounded by a part, for saving, restoring and reading single users alike.
"""

import bisect
import contextlib
import itertools
import logging
import pathlib
import shutil
import zlib
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import tensorstore as ts
from orbax.checkpoint import v1 as ocp

from jaxrec import config as config_lib
from jaxrec.errors import StoreError
from jaxrec.runtime import checkpoint, workdir
from jaxrec.serving.places import writing
from jaxrec.serving.service import Recommender, Track
from jaxrec.state_store.keys import decode_key, encode_ids, id_list, shard_numbers
from jaxrec.state_store.metadata import (
    STORE_FILE,
    Metadata,
    check_num_shards,
    display,
    open_root,
    parse_metadata,
    read_json,
    write_json,
)
from jaxrec.state_store.rows import Columns
from jaxrec.state_store.store import COPY_FILE, Url, UserStateStore
from jaxrec.types import UserId

FOLDER = "snapshots"  # in a run's folder
RECORD = "record.json"
CHUNK_BYTES = 65536  # of rows: what reading one user has to decompress
PART_USERS = 4096


class Part(NamedTuple):
    """One Orbax checkpoint: users of one shard whose keys lie in [low, high] (hex)."""

    name: str
    shard: int
    users: int
    low: str
    high: str
    keys_crc: int


def steps(folder: pathlib.Path) -> list[int]:
    """Complete snapshots, oldest first."""
    return sorted(int(path.parent.name) for path in folder.glob(f"*/{RECORD}"))


def save(
    rec: Recommender,
    store: UserStateStore,
    folder: pathlib.Path,
    step: int | None = None,
    track: Track = lambda values, total: values,
) -> int:
    """Writes model and states as snapshot `step` (default: one after the newest).

    Every row is whole; users written meanwhile are there as they were before or after. A
    snapshot that was interrupted is not one, and is overwritten. Raises StoreError when the
    step exists, a row is damaged, or something cannot be written (disk full): it says where.
    """
    number = max(steps(folder), default=0) + 1 if step is None else step
    target = folder / str(number)
    if (target / RECORD).exists():
        raise StoreError(f"{target}: there already is a snapshot; choose another step")
    shutil.rmtree(target, ignore_errors=True)
    with writing(target):
        _save_model(rec, target / "model")
    parts: list[Part] = []
    total = sum(shard.users for shard in store.stat())
    pieces = (
        (shard, ids, columns)
        for shard in range(store.num_shards)
        for ids, columns in store.iterate(PART_USERS, shards=[shard])
    )
    for shard, ids, columns in track(pieces, -(-total // PART_USERS)):
        name = f"{len(parts):05d}"
        place = target / "states" / name
        with writing(place):
            parts.append(_save_part(store, place, name, shard, ids, columns))
    content = {
        "step": number,
        "users": sum(part.users for part in parts),
        "store": store.metadata.to_json(),
        "parts": [part._asdict() for part in parts],
    }
    with writing(target):
        target.mkdir(parents=True, exist_ok=True)
        write_json(open_root(target), RECORD, content)
    return number


def _save_model(rec: Recommender, folder: pathlib.Path) -> None:
    """The part of a run's folder that serving needs."""
    folder.mkdir(parents=True)
    rec.catalog.save(folder)
    step = rec.step
    checkpoint.save(folder / workdir.CHECKPOINTS, step, {"params": rec.params}, {}, best=step)
    workdir.write_text(folder / "config.json", config_lib.to_json(rec.config))


def _save_part(
    store: UserStateStore,
    folder: pathlib.Path,
    name: str,
    shard: int,
    ids: list[UserId],
    columns: Columns,
) -> Part:
    keys, _ = encode_ids(ids)
    order = sorted(range(len(keys)), key=keys.__getitem__)
    keys = [keys[i] for i in order]
    rows = store.spec.pack(columns)[order]
    blob = np.frombuffer(b"".join(keys), np.uint8)
    arrays = {
        "rows": rows,
        "crc": np.asarray([_crc(k, r) for k, r in zip(keys, rows, strict=True)], np.uint32),
        "keys": blob,
        "ends": np.cumsum([len(key) for key in keys]).astype(np.int64),
    }
    context = ocp.Context()
    storage = context.array_options.saving.storage_options
    context.array_options.saving.storage_options = type(storage)(
        chunk_byte_size=max(CHUNK_BYTES, store.spec.row_bytes), shard_axes=(0,)
    )
    with context, _without_warnings():
        ocp.save_checkpointables(folder.absolute(), {"states": arrays})
    return Part(name, shard, len(ids), keys[0].hex(), keys[-1].hex(), zlib.crc32(blob.tobytes()))


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """Orbax warns of every array that small chunks are slow to read as a whole."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _crc(key: bytes, row: np.ndarray) -> int:
    return zlib.crc32(row.tobytes(), zlib.crc32(key))


class Snapshot:
    """A snapshot opened for reading: nothing is loaded but its record."""

    def __init__(self, folder: pathlib.Path, step: int | None = None) -> None:
        """folder: of all snapshots, or of a single one. step: default the newest.

        Raises StoreError when there is none or its record is damaged.
        """
        if step is None and (folder / RECORD).exists():
            self.folder = folder
        else:
            known = steps(folder)
            if not known or (step is not None and step not in known):
                what = "snapshot" if step is None else f"snapshot {step}"
                raise StoreError(f"{folder}: no {what} there; there are {known or 'none'}")
            self.folder = folder / str(known[-1] if step is None else step)
        content, _ = read_json(open_root(self.folder), RECORD)
        if content is None:
            raise StoreError(f"{self.folder / RECORD}: missing")
        self.step: int = content["step"]
        self.users: int = content["users"]
        self.metadata: Metadata = parse_metadata(content["store"], str(self.folder / RECORD))
        self.parts = [Part(**part) for part in content["parts"]]

    def load(self, **options: Any) -> Recommender:
        """The model of the snapshot; options as of `Recommender.load`."""
        return Recommender.load(self.folder / "model", **options)

    def read(self, user_ids: Iterable[Any]) -> tuple[Columns, np.ndarray]:
        """(columns [B, ...], found bool [B]) of single users; rows of unknown users are zero.

        Reads the keys of the parts that can hold them, and the chunks of their rows.
        """
        ids = id_list(user_ids)
        keys, hashes = encode_ids(ids)
        shards = shard_numbers(hashes, self.metadata.num_shards)
        found = np.zeros(len(ids), bool)
        rows = np.zeros((len(ids), self.metadata.spec.row_bytes), np.uint8)
        for part in self.parts:
            low, high = bytes.fromhex(part.low), bytes.fromhex(part.high)
            asked = [i for i, k in enumerate(keys) if shards[i] == part.shard and low <= k <= high]
            if not asked:
                continue
            known = self._keys(part)
            places = {i: bisect.bisect_left(known, keys[i]) for i in asked}
            here = [i for i in asked if known[places[i]] == keys[i]]
            if here:
                at = [places[i] for i in here]
                rows[here] = self._checked(part, [keys[i] for i in here], np.asarray(at))
                found[here] = True
        return self.metadata.spec.unpack(rows), found

    def iterate(self, first: int = 0) -> Iterator[tuple[list[UserId], Columns]]:
        """All users, a part at a time, from part number `first` on."""
        for part in self.parts[first:]:
            keys = self._keys(part)
            rows = self._checked(part, keys, None)
            yield [decode_key(key) for key in keys], self.metadata.spec.unpack(rows)

    def _keys(self, part: Part) -> list[bytes]:
        blob = self._array(part, "keys", None).tobytes()
        if zlib.crc32(blob) != part.keys_crc:
            raise StoreError(f"{self._where(part)}: the keys are not those that were saved")
        ends = self._array(part, "ends", None).tolist()
        return [blob[a:b] for a, b in itertools.pairwise([0, *ends])]

    def _checked(self, part: Part, keys: list[bytes], at: np.ndarray | None) -> np.ndarray:
        rows, crc = self._array(part, "rows", at), self._array(part, "crc", at)
        bad = [
            decode_key(key)
            for key, row, wanted in zip(keys, rows, crc.tolist(), strict=True)
            if _crc(key, row) != wanted
        ]
        if bad:
            raise StoreError(
                f"{self._where(part)}: damaged: the rows of {len(bad)} users are not those that "
                f"were saved, first {bad[0]!r}; use another snapshot",
                bad,
            )
        return rows

    def _array(self, part: Part, name: str, at: np.ndarray | None) -> np.ndarray:
        spec = {
            "driver": "zarr3",
            "kvstore": {
                "driver": "ocdbt",
                "base": {"driver": "file", "path": f"{self._where(part)}/states/"},
            },
            "path": name,
        }
        try:
            array = ts.open(spec, open=True, read=True).result()
            return np.asarray((array if at is None else array[at]).read().result())
        except ValueError as error:
            line = str(error).splitlines()[0][:300]
            raise StoreError(f"{self._where(part)}: {name} cannot be read: {line}") from error

    def _where(self, part: Part) -> pathlib.Path:
        return self.folder.absolute() / "states" / part.name


def restore(
    snapshot: Snapshot,
    url: Url,
    num_shards: int,
    track: Track = lambda values, total: values,
) -> int:
    """Writes the states of a snapshot into a new store of `num_shards`; returns how many users.

    The same call goes on where a killed one stopped; until it is done the store cannot be
    opened for reading. Raises StoreError when another store is there.
    """
    metadata = snapshot.metadata
    check_num_shards(num_shards)
    source = f"{snapshot.folder.name}-{metadata.identity}-{snapshot.users}"
    root = open_root(url)
    marker = read_json(root, COPY_FILE)[0]
    if marker is not None and marker.get("source") != source:
        raise StoreError(
            f"{display(root, COPY_FILE)}: an unfinished copy of {marker.get('source')}, not of "
            f"{source}; finish that one, or choose another place"
        )
    done = 0 if marker is None else int(marker["parts"])
    users = sum(part.users for part in snapshot.parts[:done])

    def announce(parts: int) -> None:
        write_json(root, COPY_FILE, {"source": source, "parts": parts, "users": users})

    if read_json(root, STORE_FILE)[0] is None:
        announce(0)  # half of it cannot be taken for a whole store
        store = UserStateStore.create(url, metadata.spec, metadata.binding, num_shards)
    else:
        store = _unfinished(metadata, url, num_shards, marker)
    with store:
        pieces = enumerate(snapshot.iterate(done), done)
        for index, (ids, columns) in track(pieces, len(snapshot.parts) - done):
            announce(index)
            store.write(ids, columns)
            users += len(ids)
        root.write(COPY_FILE, None).result()
    return users


def _unfinished(
    metadata: Metadata, url: Url, num_shards: int, marker: dict[str, Any] | None
) -> UserStateStore:
    """The target of a restore that was killed; raises StoreError when it is another store."""
    if marker is None:
        there = sum(shard.users for shard in UserStateStore.open(url, None).stat())
        raise StoreError(f"{url}: there already is a store of {there} users; choose another place")
    store = UserStateStore.open(url, metadata.binding, spec=metadata.spec, mode="w")
    if store.num_shards != num_shards:
        store.close()
        raise StoreError(
            f"{url}: the unfinished restore there has {store.num_shards} shards, not "
            f"{num_shards}; finish it with that number, or choose another place"
        )
    return store
