"""What serving needs to know about the data: raw item ids, popularity, origin of times.

Training writes it into the run's folder as `catalog.npz`, so that a model is served where no
data library is installed and the prepared data is not there.
"""

import dataclasses
import hashlib
import pathlib
from collections.abc import Sequence

import numpy as np

from jaxrec.config import digest
from jaxrec.data.schema import INT32_MAX
from jaxrec.data.vocabulary import Vocabulary
from jaxrec.errors import DataError, WorkdirError
from jaxrec.runtime import workdir
from jaxrec.types import ItemId, UserId
from jaxrec.untrusted import arrays

FILE = "catalog.npz"
_AGAIN = (
    "Remove it and start the training command of this run again: it writes the file before it "
    "goes on"
)


@dataclasses.dataclass(frozen=True, eq=False)
class Catalog:
    """The items of a model and the clock of its data.

    vocabulary: raw item ids of dense ids 1..V. counts: int64 [V + 1], training events per item
    (entry 0 is padding). time_origin: seconds since 1970 that the model's times count from.
    text_users: user ids are text in the training data (else integers); 5 and "5" are different
    users, so ids of the other kind are refused instead of being taken for unknown users.
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
    def content_digest(self) -> str:
        """32 hex digits of all that the file holds."""
        ids = self.vocabulary.ids
        sums = hashlib.blake2b(f"{self.time_origin} {self.text_users} ".encode(), digest_size=16)
        sums.update("\n".join(f"{ids.dtype.kind}{raw!r}" for raw in ids.tolist()).encode())
        sums.update(np.asarray(self.counts, "<i8").tobytes())
        return sums.hexdigest()

    @property
    def text_items(self) -> bool:
        """Whether raw item ids are text (else integers)."""
        return self.vocabulary.ids.dtype.kind != "i"

    @property
    def no_item(self) -> ItemId:
        """What stands where a list has no item: -1, or an empty text."""
        return "" if self.text_items else -1

    def check_users(self, users: Sequence[UserId], source: str) -> None:
        """Raises DataError when user ids are not of the kind of the training data's.

        source: the call, for messages.
        """
        kind, expected, other = (
            (str, "text", "integers") if self.text_users else (int, "integers", "text")
        )
        wrong = next((user for user in users if not isinstance(user, kind)), None)
        if wrong is not None:
            raise DataError(
                f"{source}: user id {wrong!r}: the training data's user ids are {expected}, "
                f"not {other}"
            )

    def raw(self, dense: np.ndarray) -> np.ndarray:
        """Raw ids of dense ids int [...], of the same shape; `no_item` for padding."""
        table = np.concatenate([np.asarray([self.no_item]), self.vocabulary.ids])
        return table[dense]

    def seconds(self, times: np.ndarray, source: str) -> np.ndarray:
        """Seconds since 1970 as the model's int32 times, of the same shape.

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
        """Writes `catalog.npz` atomically: a failed write leaves the file that was there."""
        with workdir.replacing(folder / FILE) as stream:
            np.savez(
                stream,
                ids=self.vocabulary.ids,
                counts=np.asarray(self.counts, np.int64),
                time_origin=np.int64(self.time_origin),
                text_users=np.bool_(self.text_users),
                digest=np.str_(self.content_digest),
            )

    @classmethod
    def load(cls, folder: pathlib.Path) -> "Catalog":
        """The catalog in a run's folder.

        Raises WorkdirError when there is none or it is damaged.
        """
        file = folder / FILE
        if not file.is_file():
            raise WorkdirError(
                f"{file}: missing. Start the training command of this run again: it writes the "
                "file before it goes on"
            )
        saved = arrays.read_npz(file, _refuse, "ids", "time_origin", "text_users", "counts")
        for name, kind in (("time_origin", "i"), ("text_users", "b"), ("digest", "U")):
            value = saved.get(name, np.str_(""))
            if value.shape != () or value.dtype.kind != kind:
                raise _refuse(f"{file}: damaged: {name} is {value.dtype} {value.shape}")
        if saved["counts"].dtype != np.int64:
            raise _refuse(f"{file}: damaged: counts are {saved['counts'].dtype}")
        try:
            vocabulary = Vocabulary(saved["ids"])
            origin, text = int(saved["time_origin"]), bool(saved["text_users"])
            catalog = cls(vocabulary, saved["counts"], origin, text)
            content_digest = catalog.content_digest
        except (DataError, UnicodeError) as error:
            raise _refuse(f"{file}: damaged: {error}") from error
        written = str(saved.get("digest", ""))
        if written != content_digest:
            state = "damaged: it is not what was written" if written else "of an earlier jaxrec"
            raise _refuse(f"{file}: {state}")
        return catalog


def _refuse(text: str) -> WorkdirError:
    return WorkdirError(f"{text}. {_AGAIN}")
