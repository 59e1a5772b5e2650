"""The texts of a catalog for training the item tower: batches with their texts, tables made anew.

    items = train_items(config, model, tower, columns, counts, folder, mesh)
    fit(..., texts=items)

The catalog is tokenised once. Of every batch, and of the negatives that its step compares with,
the distinct texts are packed into rows, so that a step computes (almost) no padding and no text
twice. Before a validation the whole catalog is encoded by the tower as it is; evaluation, states
and serving use that table and never the tower.
"""

import dataclasses
import functools
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxrec.config import Config, TextsConfig
from jaxrec.data import item_words
from jaxrec.interop import towers
from jaxrec.items import text_vectors
from jaxrec.model.recommender import Model
from jaxrec.nn.item_tower import TOWER, ItemTower
from jaxrec.objective import sampling
from jaxrec.runtime import distributed
from jaxrec.training import text_step as text_steps
from jaxrec.training.text_step import TABLE, TextBatch, TextItems
from jaxrec.types import PAD, Batch, Params


@dataclasses.dataclass(frozen=True)
class Shape:
    """rows: of a chunk, over all devices; row_length: positions; longest: words of a text."""

    rows: int
    row_length: int
    longest: int

    @classmethod
    def of(cls, texts: TextsConfig, tower: ItemTower, devices: int, longest: int = 0) -> "Shape":
        """longest: of the catalog's texts (default: `texts.max_tokens`)."""
        most = max(256, texts.max_tokens + 1)
        behind = int(tower.end is not None)
        return cls(texts.rows * devices, most, (longest or texts.max_tokens) + behind)

    def chunks(self, texts: int) -> int:
        """Enough for any `texts` texts: a row that is not the last holds as many as surely fit."""
        rows = -(-texts // (self.row_length // self.longest))
        return -(-rows // self.rows)


def attach(
    batch: Batch,
    negatives: sampling.Negatives,
    which: np.ndarray,
    words: item_words.Words,
    shape: Shape,
    end: int | None,
) -> TextBatch:
    """A whole batch, as NumPy arrays, with the texts of its items and negatives.

    which: int32 [V + 1] text of every item, -1: none. Sizes depend on those of `batch` and
    `negatives` alone, so every batch of a run has the same.
    """
    items, drawn = np.asarray(batch.items), np.asarray(negatives.ids)
    named = np.concatenate([[PAD], items.reshape(-1), drawn]).astype(np.int64)
    ids, places = np.unique(named, return_inverse=True)  # PAD is the smallest: row 0
    text = np.full(len(named), -1, np.int64)
    text[: len(ids)] = which[ids]
    wanted = np.unique(text[text >= 0])
    filled = item_words.fill_rows(words.lengths[wanted] + int(end is not None), shape.row_length)
    chunks = shape.chunks(min(len(named) - 1, len(words)))
    flat = (chunks * shape.rows, shape.row_length)
    packed, order = item_words.lay_out(words, wanted, filled, flat, end)
    number = np.zeros(len(words) + 1, np.int32)  # the last: no text
    number[order] = np.arange(1, len(order) + 1)
    rows = places.astype(np.int32)[1:]
    size = (chunks, shape.rows, shape.row_length)
    return TextBatch(
        batch._replace(items=rows[: items.size].reshape(items.shape)),
        negatives._replace(ids=rows[items.size :]),
        number[text],
        packed.words.reshape(size),
        packed.owner.reshape(size),
        packed.positions.reshape(size),
        np.int32(-(-len(filled) // shape.rows)),
    )


def abstract(config: Config, batch: Batch, tower: ItemTower, mesh: Mesh) -> TextBatch:
    """What `attach` makes of any batch of these shapes, texts as long as they may be."""
    shape = Shape.of(config.model.texts, tower, mesh.size)
    count, drawn = math.prod(batch.items.shape), config.loss.negatives
    packed = (shape.chunks(count + drawn), shape.rows, shape.row_length)

    def of(*size: int, dtype: Any = np.int32) -> Any:
        return jax.ShapeDtypeStruct(size, dtype)

    negatives = sampling.Negatives(of(drawn), of(drawn, dtype=np.float32))
    whole = TextBatch(
        batch, negatives, of(count + drawn + 1), of(*packed), of(*packed), of(*packed), of()
    )
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        whole,
        text_steps.shardings(mesh),
    )


class Known:
    """Words of texts that are tokenised already, in place of `item_words.Tokenizer`."""

    def __init__(self, texts: Sequence[str], words: item_words.Words):
        self.numbers = {text: number for number, text in enumerate(texts)}
        self.all = words

    def words(self, texts: Sequence[str], longest: int) -> item_words.Words:
        """Words of some of the texts; they are cut already."""
        del longest
        every = self.all
        parts = [
            every.words[every.offsets[n] : every.offsets[n + 1]]
            for n in (self.numbers[text] for text in texts)
        ]
        offsets = np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int64)
        return item_words.Words(np.concatenate(parts), offsets, every.cut)


def train_items(
    config: Config,
    model: Model,
    tower: ItemTower,
    columns: Mapping[str, Sequence[str]] | None,
    counts: np.ndarray,
    folder: Path,
    mesh: Mesh,
    say: Callable[[str], None] = lambda line: None,
) -> TextItems:
    """What `training.loop.fit` needs to train the item tower of a catalog.

    columns: texts of items 0..V (`Prepared.texts`); counts: [V + 1] training events per item;
    folder: where words and vectors are kept. Raises DataError.
    """
    texts = config.model.texts
    composed = item_words.compose(columns, texts.fields, texts.prompt)
    distinct, which = item_words.distinct(composed)
    text_vectors.check(distinct)
    tokenizer = item_words.Tokenizer(texts.model, tower.text.vocabulary)
    tokenise = functools.partial(
        item_words.tokenised, tokenizer, distinct, texts.max_tokens, folder
    )
    distributed.leader_first(tokenise)
    words = tokenise()
    say(
        f"item texts: {len(words):,} of {len(composed) - 1:,} items, {words.cut:,} cut to "
        f"{texts.max_tokens} words"
    )
    shape = Shape.of(texts, tower, mesh.size, int(words.lengths.max()))
    uniform = config.loss.sampling == "uniform"
    sampler = None if uniform else sampling.make_sampler(counts)

    @jax.jit
    def draw(step: int) -> sampling.Negatives:
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(config.seed), 1), step)
        return model.negatives(key, sampler)

    def put(step: int, batch: Batch) -> TextBatch:
        # all processes see the whole batch: they pack the same rows and hold their part of them
        whole = distributed.gather_rows(batch)
        drawn = sampling.Negatives(*map(np.asarray, draw(step)))
        found = attach(whole, drawn, which, words, shape, tower.end)
        return distributed.spread(found, text_steps.shardings(mesh))

    encoder, known = text_vectors.encoder(tower, mesh), Known(distinct, words)

    def refresh(params: Params) -> Params:
        encoded = text_vectors.encode(
            tower,
            params[TOWER],
            known,
            composed,
            folder / "trained",
            longest=texts.max_tokens,
            rows=shape.rows,
            row_length=shape.row_length,
            mesh=mesh,
            run=encoder,
            say=say,
        )
        table = towers.filled(encoded.vectors, np.asarray(params["item_mean"]))
        table = distributed.spread(table, params[TABLE].sharding)
        distributed.leader_first(lambda: _keep_alone(encoded.folder))
        return {**params, TABLE: table}

    return TextItems(tower, put, refresh)


def _keep_alone(folder: Path) -> None:
    """Removes vectors of earlier parameters: a checkpoint has those it needs."""
    for other in folder.parent.iterdir():
        if other != folder:
            shutil.rmtree(other, ignore_errors=True)


def with_tower(init: Callable[[jax.Array], Params], tower: ItemTower) -> Any:
    """`init` with the tower's parameters beside those of the model."""

    def both(rng: jax.Array) -> Params:
        return {**init(rng), TOWER: tower.init(jax.random.fold_in(rng, 1))}

    return both
