"""Snapshots: a model and its users' states as one step beside the run.

    <folder>/<step>/record.json     table of contents; written last: without it there is no snapshot
    <folder>/<step>/model/          the run's config, catalog and parameters: `Recommender.load`
    <folder>/<step>/states/00000/   Orbax checkpoint of one part: at most some 4,096 users

`save` writes one, `Snapshot` reads it, `jaxrec.serving.restore` makes a store of it.

A part holds `rows` uint8 [U, row_bytes] in chunks of a few users, `crc` uint32 [U] of key and
row, and the users' keys. Orbax keeps no checksum of what it stores, so rows are checked when
they are read. Memory is bounded by a part, for saving, restoring and reading single users alike.
"""

import bisect
import contextlib
import itertools
import logging
import pathlib
import shutil
import uuid
import zlib
from collections.abc import Iterator, Sequence

import jax
import numpy as np
import tensorstore as ts
from orbax.checkpoint import v1 as ocp

from jaxrec import config as config_lib
from jaxrec.errors import StoreError
from jaxrec.runtime import checkpoint, workdir
from jaxrec.serving import snapshot_record
from jaxrec.serving.service import Recommender
from jaxrec.serving.snapshot_record import RECORD, Part, Record
from jaxrec.serving.tracking import Progress, no_progress
from jaxrec.serving.write_errors import as_store_errors
from jaxrec.state_store.keys import (
    UserIds,
    checksum,
    decode_key,
    encode_ids,
    id_list,
    shard_numbers,
)
from jaxrec.state_store.metadata import write_json
from jaxrec.state_store.places import open_root
from jaxrec.state_store.row_format import Columns
from jaxrec.state_store.store import UserStateStore
from jaxrec.types import UserId

FOLDER = "snapshots"  # in a run's folder
CHUNK_BYTES = 65536  # of rows: what reading one user has to decompress
PART_USERS = 4096
_MAX_NUMBERS = 1 << 30  # of an array of a part


def steps(folder: pathlib.Path) -> list[int]:
    """Complete snapshots, oldest first."""
    return sorted(int(path.parent.name) for path in folder.glob(f"*/{RECORD}"))


def save(
    rec: Recommender,
    store: UserStateStore,
    folder: pathlib.Path,
    step: int | None = None,
    progress: Progress = no_progress,
) -> int:
    """Writes model and states as snapshot `step` (default: one after the newest); returns it.

    progress: over parts. Every row is whole; users written meanwhile are there as they were
    before or after. An interrupted snapshot does not count and is overwritten. Raises StoreError
    when the step exists, a row is damaged, or a file cannot be written (disk full).
    """
    number = max(steps(folder), default=0) + 1 if step is None else step
    target = folder / str(number)
    if (target / RECORD).exists():
        raise StoreError(f"{target}: there already is a snapshot; choose another step")
    shutil.rmtree(target, ignore_errors=True)
    with as_store_errors(target):
        _save_model(rec, target / "model")
    parts: list[Part] = []
    total = sum(shard.users for shard in store.stat())
    batches = (
        (shard, ids, columns)
        for shard in range(store.num_shards)
        for ids, columns in store.iterate(PART_USERS, shards=[shard])
    )
    for shard, ids, columns in progress(batches, -(-total // PART_USERS)):
        folder_of_part = target / "states" / f"{len(parts):05d}"
        with as_store_errors(folder_of_part):
            parts.append(_save_part(store, folder_of_part, shard, ids, columns))
    users = sum(part.users for part in parts)
    record = Record(uuid.uuid4().hex, number, users, store.metadata, parts)
    with as_store_errors(target):
        target.mkdir(parents=True, exist_ok=True)
        write_json(open_root(target), RECORD, record.to_json())
    return number


def _save_model(rec: Recommender, folder: pathlib.Path) -> None:
    """What serving needs of a run's folder."""
    folder.mkdir(parents=True)
    rec.catalog.save(folder)
    step = rec.step
    checkpoint.save(folder / workdir.CHECKPOINTS, step, {"params": rec.params}, {}, best=step)
    workdir.write_text(folder / workdir.CONFIG, config_lib.to_json(rec.config))


def _save_part(
    store: UserStateStore,
    folder: pathlib.Path,
    shard: int,
    ids: list[UserId],
    columns: Columns,
) -> Part:
    """Writes the rows of users of one shard, by key; the folder's name is the part's."""
    keys, _ = encode_ids(ids)
    order = sorted(range(len(keys)), key=keys.__getitem__)
    keys = [keys[i] for i in order]
    rows = store.spec.pack(columns)[order]
    blob = np.frombuffer(b"".join(keys), np.uint8)
    arrays = {
        "rows": rows,
        "crc": np.asarray(
            [checksum(k, r.tobytes()) for k, r in zip(keys, rows, strict=True)], np.uint32
        ),
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
    return Part(
        name=folder.name,
        shard=shard,
        users=len(ids),
        low=keys[0].hex(),
        high=keys[-1].hex(),
        keys_crc=zlib.crc32(blob.tobytes()),
        rows_crc=zlib.crc32(arrays["crc"].tobytes()),
    )


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


class Snapshot:
    """A snapshot opened for reading: nothing is loaded but its record."""

    def __init__(self, folder: pathlib.Path, step: int | None = None) -> None:
        """folder: of all snapshots, or of a single one. step: default the newest.

        Raises StoreError when there is none or its record is damaged.
        """
        if step is None and (folder / RECORD).exists():
            self.folder = folder
        else:
            complete = steps(folder)
            if not complete or (step is not None and step not in complete):
                missing = "snapshot" if step is None else f"snapshot {step}"
                raise StoreError(f"{folder}: no {missing} there; there are {complete or 'none'}")
            self.folder = folder / str(complete[-1] if step is None else step)
        record = snapshot_record.read(self.folder)
        self.identity, self.step, self.users = record.identity, record.step, record.users
        self.metadata, self.parts = record.metadata, record.parts

    def load(self, *, devices: Sequence[jax.Device] | None = None) -> Recommender:
        """The model of the snapshot; devices as in `Recommender.load`.

        Raises StoreError when it is not the model that the states belong to.
        """
        folder = self.folder / "model"
        rec, binding = Recommender.load(folder, devices=devices), self.metadata.binding
        if rec.binding(binding.encoding) != binding:
            raise StoreError(
                f"{folder}: not the model of this snapshot's states: its parameters, layout or "
                "catalog are others; use another snapshot"
            )
        return rec

    def read(self, user_ids: UserIds) -> tuple[Columns, np.ndarray]:
        """(columns [B, ...], known bool [B]) of single users; rows of unknown users are zero.

        Reads the keys of the parts that can hold them, and the chunks of their rows.
        """
        ids = id_list(user_ids)
        keys, hashes = encode_ids(ids)
        shards = shard_numbers(hashes, self.metadata.num_shards)
        known = np.zeros(len(ids), bool)
        rows = np.zeros((len(ids), self.metadata.spec.row_bytes), np.uint8)
        for part in self.parts:
            low, high = bytes.fromhex(part.low), bytes.fromhex(part.high)
            in_range = [
                i for i, key in enumerate(keys) if shards[i] == part.shard and low <= key <= high
            ]
            if not in_range:
                continue
            part_keys = self._keys(part)
            places = {i: bisect.bisect_left(part_keys, keys[i]) for i in in_range}
            matches = [i for i in in_range if part_keys[places[i]] == keys[i]]
            if matches:
                at = np.asarray([places[i] for i in matches])
                rows[matches] = self._checked_rows(part, [keys[i] for i in matches], at)
                known[matches] = True
        return self.metadata.spec.unpack(rows), known

    def iterate(self, first: int = 0) -> Iterator[tuple[list[UserId], Columns]]:
        """All users, a part at a time, from part number `first` on."""
        for part in self.parts[first:]:
            keys = self._keys(part)
            rows = self._checked_rows(part, keys, None)
            yield [decode_key(key) for key in keys], self.metadata.spec.unpack(rows)

    def _keys(self, part: Part) -> list[bytes]:
        """Keys of a part's users, ascending. Raises StoreError when they are damaged."""
        ends = self._array(part, "ends", None)
        blob = self._array(part, "keys", None).tobytes()
        last = int(ends[-1]) if len(ends) else 0
        if zlib.crc32(blob) != part.keys_crc or last != len(blob) or (np.diff(ends) <= 0).any():
            raise StoreError(f"{self._where(part)}: the keys are not those that were saved")
        return [blob[a:b] for a, b in itertools.pairwise([0, *ends.tolist()])]

    def _checked_rows(self, part: Part, keys: list[bytes], at: np.ndarray | None) -> np.ndarray:
        """Rows uint8 [U, row_bytes] of keys, at these places of a part (None: all).

        Raises StoreError naming the users whose rows are damaged.
        """
        rows, crc = self._array(part, "rows", at), self._array(part, "crc", None)
        if zlib.crc32(crc.tobytes()) != part.rows_crc:
            raise StoreError(
                f"{self._where(part)}: the rows are not those that were saved: damaged, or another "
                "snapshot's; use another snapshot"
            )
        crc = crc if at is None else crc[at]
        damaged = [
            decode_key(key)
            for key, row, saved in zip(keys, rows, crc.tolist(), strict=True)
            if checksum(key, row.tobytes()) != saved
        ]
        if damaged:
            raise StoreError(
                f"{self._where(part)}: damaged: the rows of {len(damaged)} users are not those "
                f"that were saved, first {damaged[0]!r}; use another snapshot",
                damaged,
            )
        return rows

    def _array(self, part: Part, name: str, at: np.ndarray | None) -> np.ndarray:
        """One array of a part, or its rows `at` these places, without loading the rest."""
        spec = {
            "driver": "zarr3",
            "kvstore": {
                "driver": "ocdbt",
                "base": {"driver": "file", "path": f"{self._where(part)}/states/"},
            },
            "path": name,
        }
        width, dtype = {
            "rows": ((self.metadata.spec.row_bytes,), "uint8"),
            "crc": ((), "uint32"),
            "ends": ((), "int64"),
            "keys": (None, "uint8"),
        }[name]
        try:
            array = ts.open(spec, open=True, read=True).result()
            shape = tuple(array.shape)
            # before anything of that size is made
            fits = shape == (part.users, *width) if width is not None else len(shape) == 1
            if not fits or max(shape) > _MAX_NUMBERS or array.dtype.name != dtype:
                raise ValueError(f"{array.dtype.name} {shape} for {part.users} users")
            return np.asarray((array if at is None else array[at]).read().result())
        except ValueError as error:
            reason = str(error).splitlines()[0][:300]
            raise StoreError(f"{self._where(part)}: {name} cannot be read: {reason}") from error

    def _where(self, part: Part) -> pathlib.Path:
        return self.folder.absolute() / "states" / part.name
