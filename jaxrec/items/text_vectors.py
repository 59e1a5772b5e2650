"""Vectors of a whole catalog from its texts, cached on disk, for frozen item towers (HLLM).

    <folder>/<digest>/
        settings.json   what the vectors depend on: parameters, pooling, longest text
        part-00001.npz  keys of texts and their vectors

The digest covers parameters and settings, so vectors of other weights are never mixed in. A text
is looked up by its own key: encoding can stop and continue anywhere, texts that two items share
are encoded once, and new items cost only their own texts.
"""

import dataclasses
import functools
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from jax.sharding import Mesh

from jaxrec.data import item_tokens
from jaxrec.errors import DataError
from jaxrec.nn.item_tower import ItemTower
from jaxrec.runtime import distributed, leaves, workdir
from jaxrec.runtime import mesh as mesh_lib
from jaxrec.types import Array, Params
from jaxrec.untrusted import arrays


class SupportsTokenize(Protocol):
    """`item_tokens.Tokenizer`, or anything else that tokenizes texts."""

    def tokenize(self, texts: Sequence[str], longest: int) -> item_tokens.TokenizedTexts:
        """Tokens of the texts, each cut to `longest`."""
        ...


@dataclasses.dataclass(frozen=True)
class Encoded:
    """The vectors of texts, and what was done to get them.

    vectors: float32 [N, D], zeros where an item has no text. folder: where they are kept.
    known: distinct texts that were on disk already. new: distinct texts that were encoded; cut: how
    many of those were too long. without_text: items without text. tokens: tokens of the new texts.
    positions: positions of the batches that held them, padding included. seconds: wall-clock time.
    """

    vectors: np.ndarray
    folder: Path
    known: int
    new: int
    cut: int
    without_text: int
    tokens: int
    positions: int
    seconds: float


def digest(tower: ItemTower, params: Params, longest: int) -> str:
    """16 hex digits of everything that a text's vector depends on."""
    settings = json.dumps(_settings(tower, longest), sort_keys=True)
    parts = [settings] + [f"{n} {leaves.digest(x)}" for n, x in leaves.flatten(params).items()]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def check(texts: Sequence[str]) -> None:
    """Raises DataError when there is nothing to encode."""
    if not texts:
        raise DataError("no item has any text: check data.text_columns and model.texts.fields")


def _settings(tower: ItemTower, longest: int) -> dict[str, Any]:
    model = dataclasses.asdict(tower.text.config)
    # how attention is computed does not change the vectors
    kept = {k: model[k] for k in ("width", "layers", "heads", "dtype", "llama")}
    return {"model": kept, "pooling": tower.pooling, "longest": longest}


def encode(
    tower: ItemTower,
    params: Params,
    tokenizer: SupportsTokenize,
    texts: Sequence[str],
    folder: str | os.PathLike[str],
    *,
    longest: int = 256,
    rows: int = 8,
    row_length: int = 0,
    part: int = 512,
    mesh: Mesh | None = None,
    run: "Encoder | None" = None,
    say: Callable[[str], None] = lambda line: None,
) -> Encoded:
    """The vector of every text: read from `folder`, or encoded and written there.

    texts: one per item (`data.item_tokens.compose`), empty: no text. longest: tokens a text is cut
    to (the embedding token comes on top). rows, row_length: shape of a batch (0: `longest` and the
    token, 256 at least); part: texts that are encoded between two files. mesh: rows are
    split over its devices. run: `encoder(tower, mesh)`, for callers that encode repeatedly. Every
    process must call this alike; the first reads and writes `folder`. Raises DataError for a
    damaged file and when no item has text.
    """
    start = time.monotonic()
    texts, text_of_item = item_tokens.distinct(texts)
    check(texts)
    devices = 1 if mesh is None else mesh.size
    if rows % devices:
        raise ValueError(f"rows={rows}: must be a multiple of the {devices} devices")
    row_length = row_length or max(256, longest + 1)
    place, known = Path(folder) / digest(tower, params, longest), dict[str, np.ndarray]()
    keys = [item_tokens.key(text) for text in texts]

    def read_known() -> None:
        place.mkdir(parents=True, exist_ok=True)
        settings = json.dumps(_settings(tower, longest), indent=1, sort_keys=True)
        workdir.write_text(place / "settings.json", settings)
        known.update(read(place, tower.text.config.width))

    distributed.leader_first(read_known)
    is_missing = distributed.from_leader(np.asarray([k not in known for k in keys]))
    missing = np.flatnonzero(is_missing).tolist()
    cut = tokens = positions = done = 0
    if missing:
        params = params if mesh is None else _on(mesh, params)
        run_batch = functools.partial(run or encoder(tower, mesh), params)
        tokenized = tokenizer.tokenize([texts[i] for i in missing], longest)
        cut = tokenized.cut
        pack = functools.partial(
            item_tokens.pack,
            tokenized,
            rows=rows,
            row_length=row_length,
            end=tower.end,
            devices=devices,
        )
        for chunk in _encode_in_parts(
            run_batch, pack, count=len(missing), part=part, width=tower.text.config.width
        ):
            new_vectors = {keys[missing[n]]: vector for n, vector in chunk.vectors.items()}
            if distributed.leader():
                _write(place, new_vectors)
            known |= new_vectors
            done += len(new_vectors)
            tokens += chunk.tokens
            positions += chunk.positions
            rate = tokens / (time.monotonic() - start)
            say(f"item texts: {done:,} of {len(missing):,} encoded, {rate:,.0f} tokens/s")
    vectors = np.zeros((len(text_of_item), tower.text.config.width), np.float32)
    table = distributed.from_leader(np.stack([known.get(k, vectors[0]) for k in keys]))
    has_text = text_of_item >= 0
    vectors[has_text] = table[text_of_item[has_text]]
    return Encoded(
        vectors,
        place,
        known=len(texts) - len(missing),
        new=len(missing),
        without_text=int((~has_text).sum()),
        seconds=time.monotonic() - start,
        cut=cut,
        tokens=tokens,
        positions=positions,
    )


class _Part(NamedTuple):
    """vectors: number of a text -> its vector [W]. tokens, positions: as in `Encoded`."""

    vectors: dict[int, np.ndarray]
    tokens: int
    positions: int


def _encode_in_parts(
    run: Callable[[item_tokens.PackedTexts], Array],
    pack: Callable[[np.ndarray], Iterable[tuple[item_tokens.PackedTexts, list[int]]]],
    *,
    count: int,
    part: int,
    width: int,
) -> Iterator[_Part]:
    """Vectors [width] of the texts 0..count - 1, `part` of them at a time.

    pack: batches of some texts, each with the numbers of the texts in it. A text without tokens
    has a vector of zeros.
    """
    # shuffled: rows are packed tightly when every part has texts of all lengths
    order = np.random.default_rng(0).permutation(count)
    for first in range(0, count, part):
        chosen = np.sort(order[first : first + part])
        vectors: dict[int, np.ndarray] = {}
        tokens = positions = 0
        for packed, numbers in pack(chosen):
            rows = np.asarray(run(packed), np.float32)
            vectors |= dict(zip(numbers, rows[: len(numbers)], strict=True))
            tokens += int((packed.owner > 0).sum())
            positions += packed.owner.size
        zeros = np.zeros(width, np.float32)
        in_order = {number: vectors.get(number, zeros) for number in chosen.tolist()}
        yield _Part(in_order, tokens, positions)


Encoder = Callable[[Params, item_tokens.PackedTexts], Any]


def encoder(tower: ItemTower, mesh: Mesh | None) -> Encoder:
    """(params, packed) -> vectors of as many texts as a batch can hold."""

    def run(params: Params, packed: item_tokens.PackedTexts, count: int) -> jax.Array:
        return tower.vectors(params, *packed, count)

    whole = None if mesh is None else mesh_lib.replicated(mesh)
    compiled = jax.jit(run, static_argnums=2, out_shardings=whole)

    def call(params: Params, packed: item_tokens.PackedTexts) -> Any:
        texts = int(packed.owner.max())
        if mesh is not None:
            rows: Any = mesh_lib.batch_sharding(mesh)
            packed = distributed.spread(packed, item_tokens.PackedTexts(rows, rows, rows))
        return compiled(params, packed, 1 << max(texts - 1, 1).bit_length())  # few compilations

    return call


def _on(mesh: Mesh, params: Params) -> Params:
    """Parameters on the mesh: arrays that are there already as they are, others replicated."""

    def place(x: Array) -> jax.Array:
        if isinstance(x, jax.Array) and len(x.sharding.device_set) == mesh.size:
            return x
        return distributed.spread(x, mesh_lib.replicated(mesh))

    return jax.tree.map(place, params)


def read(place: Path, width: int) -> dict[str, np.ndarray]:
    """Key -> vector of every file of a folder. Raises DataError naming a damaged one."""
    vectors_of: dict[str, np.ndarray] = {}
    for file in sorted(place.glob("part-*.npz")):
        saved = arrays.read_npz(file, _refuse, "keys", "vectors", "digest")
        keys, vectors = saved["keys"], saved["vectors"]
        if keys.shape != vectors.shape[:1] or keys.dtype.kind != "U":
            raise _refuse(f"{file}: damaged: keys are {keys.dtype} {keys.shape}")
        if vectors.shape[1:] != (width,) or leaves.digest(vectors) != str(saved["digest"]):
            raise _refuse(f"{file}: not what was written")
        vectors_of |= dict(zip(keys.tolist(), vectors, strict=True))
    return vectors_of


def _refuse(text: str) -> DataError:
    return DataError(f"{text}. Remove it, it is made again")


def _write(place: Path, vectors_of: dict[str, np.ndarray]) -> None:
    """Adds a file of key -> vector; it appears whole or not at all."""
    number = 1 + max((int(f.stem.split("-")[1]) for f in place.glob("part-*.npz")), default=0)
    vectors = np.stack(list(vectors_of.values()))
    draft = place / f".part-{os.getpid()}.npz"
    np.savez(draft, keys=list(vectors_of), vectors=vectors, digest=leaves.digest(vectors))
    os.replace(draft, place / f"part-{number:05d}.npz")
