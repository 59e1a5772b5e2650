"""What serving must know of the data: raw item ids, popularity, where times count from.

Training writes it into the run's folder as `catalog.npz`, so that a model is served where no
data library is installed and the prepared data is not there.
"""

import dataclasses
import os
import pathlib
import zipfile
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxrec.config import digest
from jaxrec.data.schema import INT32_MAX
from jaxrec.data.vocabulary import Vocabulary
from jaxrec.errors import DataError, WorkdirError

FILE = "catalog.npz"


@dataclasses.dataclass(frozen=True, eq=False)
class Catalog:
    """The items of a model.

    vocabulary: raw item ids of dense ids 1..V. counts: int64 [V + 1], training events per item
    (entry 0 is padding). time_origin: seconds since 1970 that the model's times count from.
    text_users: user ids are text in the training data (else integers); 5 and "5" are different
    users, so ids of the other kind are refused instead of being strangers.
    """

    vocabulary: Vocabulary
    counts: np.ndarray
    time_origin: int
    text_users: bool = False

    def __post_init__(self) -> None:
        if self.counts.shape != (len(self.vocabulary) + 1,):
            raise DataError(
                f"catalog: {len(self.vocabulary)} items need counts of shape "
                f"{(len(self.vocabulary) + 1,)}, found {self.counts.shape}"
            )

    @property
    def num_items(self) -> int:
        """V, padding not counted."""
        return len(self.vocabulary)

    @property
    def digest(self) -> str:
        """12 hex digits that identify vocabulary and time origin."""
        return digest([str(raw) for raw in self.vocabulary.ids.tolist()], self.time_origin)

    @property
    def no_item(self) -> Any:
        """What stands where a list has no item: -1, or an empty text."""
        return -1 if self.vocabulary.ids.dtype.kind == "i" else ""

    def check_users(self, users: Sequence[int | str], source: str) -> None:
        """Raises DataError when user ids are not of the kind of the training data's."""
        kind, other = (str, "integers") if self.text_users else (int, "text")
        wrong = next((user for user in users if not isinstance(user, kind)), None)
        if wrong is not None:
            own = "text" if self.text_users else "integers"
            raise DataError(
                f"{source}: user id {wrong!r}: the training data's user ids are {own}, not {other}"
            )

    def raw(self, dense: np.ndarray) -> np.ndarray:
        """Raw ids of dense ids of any shape; `no_item` for padding."""
        table = np.concatenate([np.asarray([self.no_item]), self.vocabulary.ids])
        return table[dense]

    def seconds(self, times: np.ndarray, source: str) -> np.ndarray:
        """Seconds since 1970 as the model's int32 times.

        Raises DataError where they are more than 68 years from the training data's origin.
        """
        relative = np.asarray(times, np.int64) - self.time_origin
        bad = np.abs(relative) > INT32_MAX
        if bad.any():
            row = int(bad.argmax())
            raise DataError(
                f"{source}: timestamp {int(np.atleast_1d(times)[row])} in row {row} is more than "
                f"{INT32_MAX} seconds from the training data's first event ({self.time_origin}): "
                "timestamps are seconds since 1970"
            )
        return relative.astype(np.int32)

    def save(self, folder: pathlib.Path) -> None:
        """Writes `catalog.npz` as a whole, or leaves the one that is there."""
        target = folder / FILE
        draft = folder / f".{FILE}.tmp"
        with draft.open("wb") as stream:
            np.savez(
                stream,
                ids=self.vocabulary.ids,
                counts=np.asarray(self.counts, np.int64),
                time_origin=np.int64(self.time_origin),
                text_users=np.bool_(self.text_users),
            )
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(draft, target)

    @classmethod
    def load(cls, folder: pathlib.Path) -> "Catalog":
        """Raises WorkdirError when the run has none or it is damaged."""
        file = folder / FILE
        if not file.is_file():
            raise WorkdirError(
                f"{file}: missing. Start the training command of this run again: it writes the "
                "file before it goes on"
            )
        try:
            with file.open("rb") as stream, np.load(stream, allow_pickle=False) as saved:
                vocabulary = Vocabulary(saved["ids"])
                origin, text = int(saved["time_origin"]), bool(saved["text_users"])
                return cls(vocabulary, saved["counts"], origin, text)
        except (KeyError, ValueError, EOFError, zipfile.BadZipFile, OSError) as error:
            raise WorkdirError(
                f"{file}: damaged ({error!r}). Remove it and start the training command of this "
                "run again: it writes the file before it goes on"
            ) from error
