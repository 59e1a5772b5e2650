"""Histories on disk: one array_record record per user, written and read through TFDS.

No TensorFlow: the builder makes its own DatasetInfo, its features are plain tensors, and
records are read as a random-access data source.
"""

import contextlib
import io
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxrec.data.histories import Histories
from jaxrec.data.progress import track
from jaxrec.data.schema import DataError

VERSION = "1.0.0"  # of the record format
SPLIT = "users"


class Record(NamedTuple):
    """One user's events, oldest first: int32 items and times [N], bool returning [N] or None."""

    items: np.ndarray
    times: np.ndarray
    returning: np.ndarray | None


def write(histories: Histories, folder: Path) -> None:
    """Writes one record per user, in user order, below `folder` (which must be new)."""
    import tensorflow_datasets as tfds

    text_ids = histories.users.dtype.kind == "U"
    events = tfds.features.Tensor(shape=(None,), dtype=np.int32)
    features: dict[str, Any] = {
        "user": np.int32,
        "raw_id": tfds.features.Text() if text_ids else np.int64,
        "items": events,
        "times": events,
    }
    if histories.returning is not None:
        features["returning"] = tfds.features.Tensor(shape=(None,), dtype=np.bool_)

    class UserHistories(  # type: ignore[call-arg]
        tfds.core.GeneratorBasedBuilder, skip_registration=True
    ):
        """Histories of users, one record each."""

        VERSION = tfds.core.Version(VERSION)

        def _info(self) -> Any:
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict(features),
                disable_shuffling=True,  # record number = dense user index
            )

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            return {SPLIT: self._generate_examples()}

        def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
            users = track(range(len(histories)), len(histories), "data: writing users")
            for user in users:
                events = slice(histories.offsets[user], histories.offsets[user + 1])
                example = {
                    "user": user,
                    "raw_id": histories.users[user].item(),
                    "items": histories.items[events],
                    "times": histories.times[events],
                }
                if histories.returning is not None:
                    example["returning"] = histories.returning[events]
                yield user, example

    tfds.disable_progress_bar()  # its bars count bytes of a download that does not exist
    builder = UserHistories(data_dir=folder, file_format="array_record")
    config = tfds.download.DownloadConfig(try_download_gcs=False)
    with contextlib.redirect_stdout(io.StringIO()):  # it announces a download
        builder.download_and_prepare(download_config=config)


class RecordSource:
    """Random access to the users' records: `len`, `[user]`, `__getitems__(users)`.

    Opened on first use in each process, so it travels to grain's workers as a path.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self._source: Any = None

    def _open(self) -> Any:
        if self._source is None:
            import tensorflow_datasets as tfds

            found = sorted(self.folder.glob(f"*/{VERSION}"))
            if len(found) != 1:
                raise DataError(f"{self.folder}: no prepared records of format {VERSION}")
            builder = tfds.builder_from_directory(found[0])
            self._source = builder.as_data_source(split=SPLIT)
        return self._source

    def __len__(self) -> int:
        return len(self._open())

    def __getitem__(self, user: int) -> Record:
        return self.__getitems__([user])[0]

    def __getitems__(self, users: Sequence[int]) -> list[Record]:
        users = [int(user) for user in users]
        records = self._open().__getitems__(users) if users else []
        for user, record in zip(users, records, strict=True):
            if int(record["user"]) != user:
                raise DataError(
                    f"{self.folder}: record {user} holds user {int(record['user'])}: the prepared "
                    "data is damaged. Remove the folder to prepare it again"
                )
        return [Record(r["items"], r["times"], r.get("returning")) for r in records]

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "_source": None}
