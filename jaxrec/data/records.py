"""Histories on disk: one array_record record per user, readable by TFDS.

Shards are written directly, without TensorFlow, and described by a builder's own DatasetInfo with
plain tensor features, so that TFDS can read them as a random-access data source. `RecordSource`
reads the same files.
"""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from jaxrec.data import examples
from jaxrec.data.sorting import Events
from jaxrec.data.tasks import Each, each
from jaxrec.errors import DataError

if TYPE_CHECKING:
    from array_record.python.array_record_data_source import ArrayRecordDataSource
    from tensorflow_datasets.core import DatasetInfo

VERSION = "1.0.0"  # of the record format
SPLIT = "users"
NAME = "user_histories"


class Shard(NamedTuple):
    """A written shard.

    size: bytes of its records. features: names of their lists. counts: int64 [U], events of each
    user.
    """

    size: int
    features: tuple[str, ...]
    counts: np.ndarray


class Record(NamedTuple):
    """One user's events, oldest first.

    items, times: int32 [N]. returning: bool [N], planted returns, or None. event: uint8 [N], types
    of events, or None.
    """

    items: np.ndarray
    times: np.ndarray
    returning: np.ndarray | None
    event: np.ndarray | None = None


def write(
    folder: Path,
    parts: Sequence[int],
    users: np.ndarray,
    load: Callable[[int], Events],
    workers: int,
    label: str = "data: writing users",
    numbers: np.ndarray | None = None,
    run: Each = each,
) -> list[np.ndarray]:
    """Writes one record per user, in order, and TFDS's description of them, below `folder`.

    parts: users of each part, > 0; part p becomes shard p. users: raw ids [U].
    load: events of a part, items 1..V; called from `workers` threads, which write a shard each.
    numbers: int [U] dense user indices, default 0..U-1. run: does the work of all parts.
    Returns the events of each user, part by part.
    """
    target = folder / NAME / VERSION
    target.mkdir(parents=True)
    ends = np.cumsum(parts)
    numbers = np.arange(len(users)) if numbers is None else numbers

    def write_part(part: int) -> Shard:
        events = load(part)
        members = slice(int(ends[part]) - parts[part], int(ends[part]))
        lists = {"items": events.items, "times": events.times}
        if events.event is not None:
            lists["event"] = events.event
        if events.returning is not None:
            lists["returning"] = events.returning
        name = f"{NAME}-{SPLIT}.array_record-{part:05d}-of-{len(parts):05d}"
        raw = users[members].tolist()
        size = _write_shard(
            target / name, examples.encode(numbers[members], raw, events.counts, lists)
        )
        return Shard(size, tuple(lists), events.counts)

    shards = list(run(write_part, len(parts), workers, label))
    _describe(target, parts, shards, users.dtype.kind == "U")
    return [shard.counts for shard in shards]


def _write_shard(path: Path, serialized: Iterable[bytes]) -> int:
    """Writes the records; returns their bytes."""
    from array_record.python.array_record_module import ArrayRecordWriter

    writer = ArrayRecordWriter(str(path), "group_size:1")
    size = 0
    for record in serialized:
        writer.write(record)
        size += len(record)
    writer.close()
    return size


def _describe(target: Path, parts: Sequence[int], shards: Sequence[Shard], text_ids: bool) -> None:
    """Writes the dataset_info.json and features.json of TFDS."""
    import tensorflow_datasets as tfds

    tensor = tfds.features.Tensor
    kinds = {"items": np.int32, "times": np.int32, "event": np.uint8, "returning": np.bool_}
    features = {
        "user": np.int32,
        "raw_id": tfds.features.Text() if text_ids else np.int64,
        **{name: tensor(shape=(None,), dtype=kinds[name]) for name in shards[0].features},
    }

    class UserHistories(  # type: ignore[call-arg]
        tfds.core.GeneratorBasedBuilder, skip_registration=True
    ):
        """Histories of users, one record each; written by `write`, described here."""

        VERSION = tfds.core.Version(VERSION)

        def _info(self) -> "DatasetInfo":
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict(features),
                disable_shuffling=True,  # record number = dense user index
            )

        def _split_generators(self, dl_manager: object) -> dict[str, object]:
            raise NotImplementedError("records are written by jaxrec.data.records.write")

        def _generate_examples(self) -> object:
            raise NotImplementedError("records are written by jaxrec.data.records.write")

    builder = UserHistories(data_dir=target.parent.parent, file_format="array_record")
    template = tfds.core.ShardedFileTemplate(
        data_dir=builder.data_path, dataset_name=NAME, split=SPLIT, filetype_suffix="array_record"
    )
    info = tfds.core.SplitInfo(
        name=SPLIT,
        shard_lengths=[int(part) for part in parts],
        num_bytes=sum(shard.size for shard in shards),
        filename_template=template,
    )
    builder.info.set_splits(tfds.core.splits.SplitDict([info]))
    builder.info.write_to_directory(target)


class RecordSource:
    """Random access to the users' records: `len`, `[user]`, `__getitems__(users)`.

    Opened on first use in each process, so it is sent to grain's workers as a path. Raises
    DataError for missing and damaged records.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self._source: ArrayRecordDataSource | None = None

    def _open(self) -> "ArrayRecordDataSource":
        if self._source is None:
            from array_record.python.array_record_data_source import ArrayRecordDataSource

            shards = sorted(map(str, self.folder.glob(f"*/{VERSION}/*.array_record-*")))
            if not shards:
                raise DataError(f"{self.folder}: no prepared records of format {VERSION}")
            self._source = ArrayRecordDataSource(shards)
        return self._source

    def __len__(self) -> int:
        return len(self._open())

    def __getitem__(self, user: int) -> Record:
        return self.__getitems__([user])[0]

    def __getitems__(self, users: Sequence[int]) -> list[Record]:
        users = [int(user) for user in users]
        try:
            rows = examples.decode(self._open().__getitems__(users)) if users else []
            return [self._record(*pair) for pair in zip(users, rows, strict=True)]
        except (ValueError, KeyError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(
                f"{self.folder}: records {users[:3]}... cannot be read ({error!r}): the prepared "
                "data is damaged. Remove the folder to prepare it again"
            ) from error

    def _record(self, user: int, row: Mapping[str, np.ndarray]) -> Record:
        if int(row["user"][0]) != user:
            raise DataError(
                f"{self.folder}: record {user} holds user {int(row['user'][0])}: the prepared "
                "data is damaged. Remove the folder to prepare it again"
            )
        return Record(
            row["items"].astype(np.int32),
            row["times"].astype(np.int32),
            row["returning"].astype(bool) if "returning" in row else None,
            row["event"].astype(np.uint8) if "event" in row else None,
        )

    def __getstate__(self) -> dict[str, object]:
        return {"folder": self.folder, "_source": None}
