"""Item texts as words for a language model: composed, tokenised, cut, packed into rows.

HLLM (arXiv 2409.12740 §3.1): an item's text is a prompt and its fields as `key: value`. Distinct
texts are tokenised once. Texts are packed: a row of the model holds several of them, so that
(almost) no padding is computed.

Needs the package tokenizers (`pip install 'jaxrec[hllm]'`) for `Tokenizer` alone.
"""

import bisect
import dataclasses
import hashlib
import itertools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxrec.errors import DataError

PROMPT = "Compress the following sentence into embedding: "


class Packed(NamedTuple):
    """Texts packed into rows. R rows, T positions.

    words: int32 [R, T], 0 in padding; owner: int32 [R, T], number of the text (from 1 on) in
    this batch, 0 in padding; positions: int32 [R, T], position inside the text.
    """

    words: np.ndarray
    owner: np.ndarray
    positions: np.ndarray


@dataclasses.dataclass(frozen=True)
class Words:
    """Texts as words: text i is `words[offsets[i]:offsets[i + 1]]`.

    words: int32; offsets: int64 [N + 1]; cut: how many texts were longer than allowed.
    """

    words: np.ndarray
    offsets: np.ndarray
    cut: int

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """int64 [N]."""
        return np.diff(self.offsets)


def compose(
    columns: Mapping[str, Sequence[str]] | None, fields: Sequence[str] = (), prompt: str = PROMPT
) -> list[str]:
    """The text of every item, `prompt` + `key: value, key: value`; empty where no field has text.

    columns: name -> text of items 0..V (`Prepared.texts`); fields: which columns, in which
    order (default: all). Empty values are left out. Raises DataError without an items table and
    for a field that it does not have.
    """
    if not columns:
        raise DataError(
            "the data set has no item texts: set data.items_path and data.text_columns "
            "(data.dataset=table), or use a data set with texts"
        )
    unknown = [name for name in fields if name not in columns]
    if unknown:
        raise DataError(
            f"model.texts.fields: {unknown[0]!r} is no text column; there are {', '.join(columns)}"
        )
    chosen = [(name, columns[name]) for name in (fields or columns)]
    texts = []
    for row in range(len(chosen[0][1])):
        parts = [
            f"{name.replace('_', ' ')}: {value.strip()}"
            for name, column in chosen
            if (value := column[row]).strip()
        ]
        texts.append(prompt + ", ".join(parts) if parts else "")
    return texts


def key(text: str) -> str:
    """32 hex digits that identify a text."""
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def distinct(texts: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """(distinct texts in order of appearance, int32 [N] which of them each is; empty: -1)."""
    numbers: dict[str, int] = {}
    which = np.full(len(texts), -1, np.int32)
    for row, text in enumerate(texts):
        if text:
            which[row] = numbers.setdefault(text, len(numbers))
    return list(numbers), which


class Tokenizer:
    """A folder's `tokenizer.json` for a model of `vocabulary` words.

    Raises DataError when the file is missing or damaged, and when it has words that the model
    does not know: weights and tokenizer of different models.
    """

    def __init__(self, folder: str | os.PathLike[str], vocabulary: int):
        file = Path(folder) / "tokenizer.json"
        try:
            import tokenizers
        except ModuleNotFoundError as error:
            raise DataError(
                "the package tokenizers is not installed: pip install 'jaxrec[hllm]'"
            ) from error
        if not file.is_file():
            raise DataError(f"{file}: no such file; a Hugging Face model folder has it")
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises plain Exception
            raise DataError(f"{file}: not a tokenizer ({error})") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.digest = hashlib.blake2b(file.read_bytes(), digest_size=16).hexdigest()
        words = self._tokenizer.get_vocab_size(with_added_tokens=True)
        if words > vocabulary:
            raise DataError(
                f"{file}: has {words} words, the weights beside it know {vocabulary}. Tokenizer "
                "and weights are of different models"
            )

    def words(self, texts: Sequence[str], longest: int) -> Words:
        """Texts cut to `longest` words. Raises DataError for a text without words."""
        encoded = [e.ids for e in self._tokenizer.encode_batch(list(texts))]
        empty = next((i for i, ids in enumerate(encoded) if not ids), None)
        if empty is not None:
            raise DataError(f"text {empty} ({texts[empty]!r}) has no words: leave empty texts out")
        cut = sum(len(ids) > longest for ids in encoded)
        encoded = [ids[:longest] for ids in encoded]
        offsets = np.zeros(len(encoded) + 1, np.int64)
        np.cumsum([len(ids) for ids in encoded], out=offsets[1:])
        flat = [word for ids in encoded for word in ids]
        return Words(np.asarray(flat, np.int32), offsets, cut)

    def text(self, words: Sequence[int]) -> str:
        """The text of words."""
        return self._tokenizer.decode([int(word) for word in words])


def tokenised(
    tokenizer: Tokenizer, texts: Sequence[str], longest: int, folder: str | os.PathLike[str]
) -> Words:
    """`Tokenizer.words`, done once: kept in `folder` as an array_record with a text per record.

    The file is named by a digest of tokenizer, texts and `longest`. Raises DataError for a
    damaged one.
    """
    from array_record.python import array_record_module

    name = hashlib.blake2b(f"{tokenizer.digest} {longest}".encode(), digest_size=16)
    for text in texts:
        name.update(key(text).encode())
    file = Path(folder) / f"words-{name.hexdigest()}.array_record"
    if not file.exists():
        words = tokenizer.words(texts, longest)
        file.parent.mkdir(parents=True, exist_ok=True)
        draft = file.with_name(f".{file.name}-{os.getpid()}")
        writer = array_record_module.ArrayRecordWriter(str(draft), "group_size:64")
        writer.write(np.int64(words.cut).tobytes())
        for start, stop in itertools.pairwise(words.offsets.tolist()):
            writer.write(words.words[start:stop].astype("<i4").tobytes())
        writer.close()
        os.replace(draft, file)
        return words
    try:
        reader = array_record_module.ArrayRecordReader(str(file))
        cut, *content = reader.read_all()
        reader.close()
        found = [np.frombuffer(record, "<i4") for record in content]
    except (ValueError, IndexError, RuntimeError) as error:
        raise DataError(f"{file}: damaged ({error}). Remove it, it is made again") from error
    if len(found) != len(texts):
        raise DataError(
            f"{file}: has {len(found)} texts instead of {len(texts)}. Remove it, it is made again"
        )
    offsets = np.concatenate([[0], np.cumsum([len(x) for x in found])]).astype(np.int64)
    return Words(np.concatenate(found), offsets, int(np.frombuffer(cut, np.int64)[0]))


def fill_rows(lengths: np.ndarray, row_length: int) -> list[list[int]]:
    """Which texts share a row of `row_length` positions: the longest that still fits, always.

    lengths: [N] of every text. Raises ValueError for a text longer than a row.
    """
    if len(lengths) and lengths.max() > row_length:
        raise ValueError(
            f"a text of {lengths.max()} words does not fit a row of {row_length} positions"
        )
    waiting: list[list[int]] = [[] for _ in range(row_length + 1)]
    for text in np.argsort(lengths, kind="stable")[::-1]:
        waiting[lengths[text]].append(int(text))
    sizes = [size for size, texts in enumerate(waiting) if texts]
    rows: list[list[int]] = []
    while sizes:
        row: list[int] = []
        room = row_length
        while room > 0 and (fitting := bisect.bisect_right(sizes, room)):
            size = sizes[fitting - 1]
            row.append(waiting[size].pop())
            if not waiting[size]:
                del sizes[fitting - 1]
            room -= size
        rows.append(row)
    return rows


def pack(
    words: Words,
    which: Iterable[int],
    rows: int,
    row_length: int,
    end: int | None = None,
    devices: int = 1,
) -> Iterator[tuple[Packed, list[int]]]:
    """Batches of up to `rows` rows: (packed, texts in the order of their numbers 1, 2, ...).

    which: texts to pack; end: a word put behind every text (the embedding token of HLLM);
    devices: what the rows of a batch must be a multiple of. The last batches have half as many
    rows, and half of that, rather than empty ones.
    """
    which = np.asarray(list(which), np.int64)
    filled = fill_rows(words.lengths[which] + int(end is not None), row_length)
    while filled:
        size = rows
        while size > len(filled) and size % (2 * devices) == 0:
            size //= 2
        yield lay_out(words, which, filled[:size], (size, row_length), end)
        filled = filled[size:]


def lay_out(
    words: Words,
    which: np.ndarray,
    filled: Sequence[Sequence[int]],
    shape: tuple[int, int],
    end: int | None = None,
) -> tuple[Packed, list[int]]:
    """(rows of `shape` that hold the texts, texts in the order of their numbers 1, 2, ...).

    filled: of every row the places in `which` of its texts; end: as in `pack`.
    """
    packed = Packed(*(np.zeros(shape, np.int32) for _ in range(3)))
    order: list[int] = []
    for r, row in enumerate(filled):
        at = 0
        for place in row:
            text = int(which[place])
            order.append(text)
            content = words.words[words.offsets[text] : words.offsets[text + 1]]
            stop = at + len(content)
            packed.words[r, at:stop] = content
            if end is not None:
                packed.words[r, stop] = end
                stop += 1
            packed.owner[r, at:stop] = len(order)
            packed.positions[r, at:stop] = np.arange(stop - at)
            at = stop
    return packed, order
