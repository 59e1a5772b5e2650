"""The vocabulary of items: raw ids of the data <-> dense ids of the model."""

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from jaxrec.config import digest
from jaxrec.errors import DataError
from jaxrec.types import Json
from jaxrec.untrusted import json_objects

MAX_BYTES = 1 << 34  # of a saved vocabulary: that many ids need as much memory anyway


@dataclasses.dataclass(frozen=True, eq=False)
class Vocabulary:
    """Raw item ids <-> dense ids 1..V; 0 is padding and every unknown item.

    ids: int64 or str [V], raw id of dense ids 1..V.

    >>> from jaxrec.data.vocabulary import Vocabulary
    >>> vocabulary = Vocabulary.by_frequency(np.array(["tea", "milk", "tea"]))
    >>> vocabulary.encode(["tea", "milk", "salt"])
    array([1, 2, 0], dtype=int32)
    """

    ids: np.ndarray

    def __post_init__(self) -> None:
        kind = self.ids.dtype.kind
        if self.ids.ndim != 1 or kind not in "iU":
            raise DataError(f"vocabulary: ids must be one int or text column, not {self.ids.dtype}")
        order = np.argsort(self.ids, kind="stable")
        ranked = self.ids[order]
        if (ranked[1:] == ranked[:-1]).any():
            twice = ranked[1:][ranked[1:] == ranked[:-1]][0]
            raise DataError(f"vocabulary: item id {twice.item()!r} occurs twice")
        object.__setattr__(self, "_order", order)
        object.__setattr__(self, "_ranked", ranked)

    @classmethod
    def by_frequency(cls, items: np.ndarray) -> "Vocabulary":
        """The distinct values of `items`, most frequent first, ties by raw id."""
        ids, counts = np.unique(items, return_counts=True)
        return cls(ids[np.argsort(-counts, kind="stable")])

    def __len__(self) -> int:
        """V: items without padding."""
        return len(self.ids)

    @property
    def digest(self) -> str:
        """12 hex digits that identify the ids and their order, as in a run's dataset.json."""
        return digest([str(raw) for raw in self.ids.tolist()])

    def encode(self, raw: ArrayLike) -> np.ndarray:
        """int32 dense ids of raw ids, 0 for unknown ones, of the shape of `raw`.

        Raises DataError for ids of another type.
        """
        values = np.asarray(raw)
        kind = values.dtype.kind
        if values.size == 0:
            return np.zeros(values.shape, np.int32)
        if (kind in "iu") != (self.ids.dtype.kind == "i") or kind not in "iuU":
            raise DataError(
                f"vocabulary: its item ids are {self._kind}, the given ones {values.dtype}. "
                f"Convert them to {self._kind}"
            )
        if not len(self):
            return np.zeros(values.shape, np.int32)
        order, ranked = self.__dict__["_order"], self.__dict__["_ranked"]
        place = np.minimum(np.searchsorted(ranked, values), len(self) - 1)
        return np.where(ranked[place] == values, order[place] + 1, 0).astype(np.int32)

    def decode(self, ids: ArrayLike) -> np.ndarray:
        """Raw ids of dense ids 1..V; DataError for 0 and anything beyond V."""
        dense = np.asarray(ids)
        if dense.size and (dense.min() < 1 or dense.max() > len(self)):
            raise DataError(
                f"vocabulary: dense ids are 1..{len(self)}, found {dense.min()}..{dense.max()}"
            )
        return self.ids[dense - 1]

    @property
    def _kind(self) -> str:
        return "integers" if self.ids.dtype.kind == "i" else "text"

    def to_json(self) -> str:
        """The vocabulary as a JSON object."""
        kind = "int" if self.ids.dtype.kind == "i" else "str"
        return json.dumps({"kind": kind, "ids": self.ids.tolist()}, ensure_ascii=False)

    @classmethod
    def from_values(cls, values: Json, where: str) -> "Vocabulary":
        """The inverse of `to_json`, of its parsed text; where: the file, for messages.

        Raises DataError for any other object.
        """
        kind = json_objects.get(values, "kind", str, where, DataError)
        ids = json_objects.get(values, "ids", list, where, DataError)
        needed = {"int": int, "str": str}.get(kind)
        if needed is None or any(type(raw) is not needed for raw in ids):
            raise DataError(f"{where}: not a saved vocabulary: its ids are not all of one kind")
        try:
            return cls(np.asarray(ids, np.int64 if kind == "int" else np.str_))
        except (OverflowError, ValueError) as error:
            raise DataError(f"{where}: not a saved vocabulary ({error})") from error

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the vocabulary as JSON; the file appears complete or not at all."""
        path = Path(path)
        draft = path.with_name(path.name + ".partial")
        draft.write_text(self.to_json(), encoding="utf-8")
        os.replace(draft, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Vocabulary":
        """Raises DataError naming the file when it is not a saved vocabulary."""
        values = json_objects.read(Path(path), DataError, max_bytes=MAX_BYTES)
        return cls.from_values(values, str(path))
