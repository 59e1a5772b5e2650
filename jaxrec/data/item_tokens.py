"""Item texts as subword tokens for a language model: composed, tokenized, cut, packed into rows.

HLLM (arXiv 2409.12740 §3.1): an item's text is a prompt and its fields as `key: value`. Distinct
texts are tokenized once. A row of the model's input holds several texts, so that almost no padding
is computed.

Only `Tokenizer` needs the package tokenizers (`pip install 'jaxrec[hllm]'`).
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


class PackedTexts(NamedTuple):
    """Texts packed into R rows of T positions.

    tokens: int32 [R, T], 0 in padding. owner: int32 [R, T], number of the text in this batch, from
    1 on; 0 in padding. positions: int32 [R, T], position inside the text.
    """

    tokens: np.ndarray
    owner: np.ndarray
    positions: np.ndarray


@dataclasses.dataclass(frozen=True)
class TokenizedTexts:
    """N texts as token ids: text i is `tokens[offsets[i]:offsets[i + 1]]`.

    tokens: int32, of all texts. offsets: int64 [N + 1]. cut: how many texts were longer than
    allowed.
    """

    tokens: np.ndarray
    offsets: np.ndarray
    cut: int

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """int64 [N], tokens of each text."""
        return np.diff(self.offsets)


def compose(
    columns: Mapping[str, Sequence[str]] | None, fields: Sequence[str] = (), prompt: str = ""
) -> list[str]:
    """The text of every item, `prompt` + `key: value, key: value`; empty where no field has text.

    columns: name -> texts of items 0..V (`Prepared.texts`). fields: the columns to use, in order
    (default: all). Empty values are left out. Raises DataError without item texts and for an
    unknown field.
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
        values = [
            f"{name.replace('_', ' ')}: {value.strip()}"
            for name, column in chosen
            if (value := column[row]).strip()
        ]
        texts.append(prompt + ", ".join(values) if values else "")
    return texts


def key(text: str) -> str:
    """32 hex digits that identify a text."""
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def distinct(texts: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """(distinct texts in order of appearance, int32 [N] index of each text; -1 for empty ones)."""
    numbers: dict[str, int] = {}
    which = np.full(len(texts), -1, np.int32)
    for row, text in enumerate(texts):
        if text:
            which[row] = numbers.setdefault(text, len(numbers))
    return list(numbers), which


class Tokenizer:
    """A folder's `tokenizer.json` for a model with a vocabulary of `vocabulary` tokens.

    Raises DataError when the file is missing or damaged, and when it has more tokens than the
    model: then weights and tokenizer are of different models.
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
        size = self._tokenizer.get_vocab_size(with_added_tokens=True)
        if size > vocabulary:
            raise DataError(
                f"{file}: has {size} tokens, the weights beside it have {vocabulary}. Tokenizer "
                "and weights are of different models"
            )

    def tokenize(self, texts: Sequence[str], longest: int) -> TokenizedTexts:
        """Texts cut to `longest` tokens. Raises DataError for a text without tokens."""
        encoded = [e.ids for e in self._tokenizer.encode_batch(list(texts))]
        empty = next((i for i, ids in enumerate(encoded) if not ids), None)
        if empty is not None:
            raise DataError(f"text {empty} ({texts[empty]!r}) has no tokens: leave empty texts out")
        cut = sum(len(ids) > longest for ids in encoded)
        encoded = [ids[:longest] for ids in encoded]
        offsets = np.zeros(len(encoded) + 1, np.int64)
        np.cumsum([len(ids) for ids in encoded], out=offsets[1:])
        flat = [token for ids in encoded for token in ids]
        return TokenizedTexts(np.asarray(flat, np.int32), offsets, cut)

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of token ids."""
        return self._tokenizer.decode([int(token) for token in tokens])


def tokenize_once(
    tokenizer: Tokenizer, texts: Sequence[str], longest: int, folder: str | os.PathLike[str]
) -> TokenizedTexts:
    """`Tokenizer.tokenize` with a cache in `folder`: an array_record file with a record per text.

    The file is named by a digest of tokenizer, texts and `longest`. Raises DataError for a damaged
    file.
    """
    from array_record.python import array_record_module

    name = hashlib.blake2b(f"{tokenizer.digest} {longest}".encode(), digest_size=16)
    for text in texts:
        name.update(key(text).encode())
    file = Path(folder) / f"tokens-{name.hexdigest()}.array_record"
    if not file.exists():
        tokenized = tokenizer.tokenize(texts, longest)
        file.parent.mkdir(parents=True, exist_ok=True)
        draft = file.with_name(f".{file.name}-{os.getpid()}")
        writer = array_record_module.ArrayRecordWriter(str(draft), "group_size:64")
        writer.write(np.int64(tokenized.cut).tobytes())
        for start, stop in itertools.pairwise(tokenized.offsets.tolist()):
            writer.write(tokenized.tokens[start:stop].astype("<i4").tobytes())
        writer.close()
        os.replace(draft, file)
        return tokenized
    try:
        reader = array_record_module.ArrayRecordReader(str(file))
        cut, *records = reader.read_all()
        reader.close()
        rows = [np.frombuffer(record, "<i4") for record in records]
    except (ValueError, IndexError, RuntimeError) as error:
        raise DataError(f"{file}: damaged ({error}). Remove it, it is made again") from error
    if len(rows) != len(texts):
        raise DataError(
            f"{file}: has {len(rows)} texts instead of {len(texts)}. Remove it, it is made again"
        )
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
    return TokenizedTexts(np.concatenate(rows), offsets, int(np.frombuffer(cut, np.int64)[0]))


def fill_rows(lengths: np.ndarray, row_length: int) -> list[list[int]]:
    """The texts of each row of `row_length` positions: always the longest that still fits.

    lengths: [N] tokens of each text. Raises ValueError for a text longer than a row.
    """
    if len(lengths) and lengths.max() > row_length:
        raise ValueError(
            f"a text of {lengths.max()} tokens does not fit a row of {row_length} positions"
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
    tokenized: TokenizedTexts,
    chosen: Iterable[int],
    rows: int,
    row_length: int,
    *,
    end: int | None = None,
    devices: int = 1,
) -> Iterator[tuple[PackedTexts, list[int]]]:
    """Batches of up to `rows` rows: (packed, texts in the order of their numbers 1, 2, ...).

    chosen: texts to pack. end: a token put behind every text (the embedding token of HLLM).
    devices: the rows of a batch are a multiple of it. The last batches have half as many rows, then
    a quarter, rather than empty ones.
    """
    chosen = np.asarray(list(chosen), np.int64)
    filled = fill_rows(tokenized.lengths[chosen] + int(end is not None), row_length)
    while filled:
        size = rows
        while size > len(filled) and size % (2 * devices) == 0:
            size //= 2
        yield lay_out(tokenized, chosen, filled[:size], (size, row_length), end=end)
        filled = filled[size:]


def lay_out(
    tokenized: TokenizedTexts,
    chosen: np.ndarray,
    filled: Sequence[Sequence[int]],
    shape: tuple[int, int],
    *,
    end: int | None = None,
) -> tuple[PackedTexts, list[int]]:
    """(rows of `shape` that hold the texts, texts in the order of their numbers 1, 2, ...).

    filled: for every row, the indices into `chosen` of its texts. end: as in `pack`.
    """
    packed = PackedTexts(*(np.zeros(shape, np.int32) for _ in range(3)))
    order: list[int] = []
    for r, row in enumerate(filled):
        start = 0
        for index in row:
            text = int(chosen[index])
            order.append(text)
            content = tokenized.tokens[tokenized.offsets[text] : tokenized.offsets[text + 1]]
            stop = start + len(content)
            packed.tokens[r, start:stop] = content
            if end is not None:
                packed.tokens[r, stop] = end
                stop += 1
            packed.owner[r, start:stop] = len(order)
            packed.positions[r, start:stop] = np.arange(stop - start)
            start = stop
    return packed, order
