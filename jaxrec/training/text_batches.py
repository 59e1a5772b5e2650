"""The texts of a catalog for training the item tower: batches with texts, the table encoded anew.

    texts = make_text_items(config, model, tower, columns=columns, counts=counts, ...)
    fit(config, workdir, Task(init, loss, texts=texts), batches=batches)

The catalog is tokenised once. The distinct texts of a batch, and of the negatives that its step
compares with, are packed into rows, so that a step computes (almost) no padding and no text twice.
Before a validation the whole catalog is encoded by the tower as it is; evaluation, states and
serving use that table and never the tower.
"""

import dataclasses
import functools
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh
from jax.typing import DTypeLike

from jaxrec.config import Config, TextsConfig
from jaxrec.data import item_tokens
from jaxrec.items import table, text_table, text_vectors
from jaxrec.model.recommender import Model
from jaxrec.nn.item_tower import TOWER, ItemTower
from jaxrec.objective import sampling
from jaxrec.objective.sampling import Negatives
from jaxrec.runtime import distributed
from jaxrec.training import step as step_lib
from jaxrec.training import text_step
from jaxrec.training.text_step import TextBatch, TextItems
from jaxrec.types import PAD, Batch, Params, Tree


@dataclasses.dataclass(frozen=True)
class Shape:
    """Sizes of packed texts.

    rows: of a chunk, over all devices. row_length: positions of a row. longest: tokens of the
    longest text, the embedding token included.
    """

    rows: int
    row_length: int
    longest: int

    @classmethod
    def of(cls, texts: TextsConfig, tower: ItemTower, devices: int, longest: int = 0) -> "Shape":
        """The sizes of a configuration.

        longest: tokens of the catalog's longest text (default: `texts.max_tokens`).
        """
        row_length = max(256, texts.max_tokens + 1)
        embedding_token = int(tower.end is not None)
        return cls(
            texts.rows * devices, row_length, (longest or texts.max_tokens) + embedding_token
        )

    def chunks(self, texts: int) -> int:
        """Chunks that hold any `texts` texts: every full row holds as many as surely fit."""
        rows = -(-texts // (self.row_length // self.longest))
        return -(-rows // self.rows)


def attach(
    batch: Batch,
    negatives: Negatives,
    *,
    text_of_item: np.ndarray,
    tokens: item_tokens.TokenizedTexts,
    shape: Shape,
    end: int | None,
) -> TextBatch:
    """A whole batch, as NumPy arrays, with the texts of its items and negatives.

    text_of_item: int32 [V + 1] text of every item, -1: none. tokens: of all texts. end: the
    embedding token put behind every text. Sizes depend on those of `batch` and `negatives` alone,
    so batches of one shape have the same.
    """
    items, drawn = np.asarray(batch.items), np.asarray(negatives.ids)
    padded = np.concatenate([[PAD], items.reshape(-1), drawn]).astype(np.int64)
    ids, places = np.unique(padded, return_inverse=True)  # PAD is the smallest: row 0
    text = np.full(len(padded), -1, np.int64)
    text[: len(ids)] = text_of_item[ids]
    present = np.unique(text[text >= 0])
    filled = item_tokens.fill_rows(tokens.lengths[present] + int(end is not None), shape.row_length)
    chunks = shape.chunks(min(len(padded) - 1, len(tokens)))
    packed, order = item_tokens.lay_out(
        tokens, present, filled, (chunks * shape.rows, shape.row_length), end=end
    )
    number = np.zeros(len(tokens) + 1, np.int32)  # the last: no text
    number[order] = np.arange(1, len(order) + 1)
    rows = places.astype(np.int32)[1:]
    size = (chunks, shape.rows, shape.row_length)
    return TextBatch(
        batch=batch._replace(items=rows[: items.size].reshape(items.shape)),
        negatives=negatives._replace(ids=rows[items.size :]),
        text_of_row=number[text],
        tokens=packed.tokens.reshape(size),
        owner=packed.owner.reshape(size),
        positions=packed.positions.reshape(size),
        used=np.asarray(-(-len(filled) // shape.rows), np.int32),
    )


def abstract(config: Config, batch: Batch, tower: ItemTower, mesh: Mesh) -> TextBatch:
    """What `attach` makes of any batch of these shapes, texts as long as they may be."""
    shape = Shape.of(config.model.texts, tower, mesh.size)
    count, drawn = math.prod(batch.items.shape), config.loss.negatives
    packed = (shape.chunks(count + drawn), shape.rows, shape.row_length)

    def of(*size: int, dtype: DTypeLike = np.int32) -> Tree:
        return jax.ShapeDtypeStruct(size, dtype)

    whole = TextBatch(
        batch=batch,
        negatives=Negatives(of(drawn), of(drawn, dtype=np.float32)),
        text_of_row=of(count + drawn + 1),
        tokens=of(*packed),
        owner=of(*packed),
        positions=of(*packed),
        used=of(),
    )
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        whole,
        text_step.shardings(mesh),
    )


def abstract_text_items(config: Config, tower: ItemTower, mesh: Mesh) -> TextItems:
    """For compiling a step without texts: `put` gives shapes (`abstract`), tables stay."""
    return TextItems(
        tower, lambda step, batch: abstract(config, batch, tower, mesh), lambda params: params
    )


class KnownTexts:
    """The tokens of texts that are tokenised already, in place of `item_tokens.Tokenizer`."""

    def __init__(self, texts: Sequence[str], tokens: item_tokens.TokenizedTexts):
        self._numbers = {text: number for number, text in enumerate(texts)}
        self._tokens = tokens

    def tokenize(self, texts: Sequence[str], longest: int) -> item_tokens.TokenizedTexts:
        """Tokens of some of the texts; they are cut already."""
        del longest
        known = self._tokens
        pieces = [
            known.tokens[known.offsets[n] : known.offsets[n + 1]]
            for n in (self._numbers[text] for text in texts)
        ]
        offsets = np.concatenate([[0], np.cumsum([len(piece) for piece in pieces])])
        return item_tokens.TokenizedTexts(
            np.concatenate(pieces), offsets.astype(np.int64), known.cut
        )


def make_text_items(
    config: Config,
    model: Model,
    tower: ItemTower,
    *,
    columns: Mapping[str, Sequence[str]] | None,
    counts: np.ndarray,
    folder: Path,
    mesh: Mesh,
    say: Callable[[str], None] = lambda line: None,
) -> TextItems:
    """What `training.loop.fit` needs to train the item tower of a catalog.

    columns: texts of items 0..V (`Prepared.texts`); counts: [V + 1] training events per item;
    folder: where tokens and vectors are kept. Raises DataError.
    """
    texts = config.model.texts
    composed = item_tokens.compose(columns, texts.fields, texts.prompt)
    distinct, text_of_item = item_tokens.distinct(composed)
    text_vectors.check(distinct)
    tokenizer = item_tokens.Tokenizer(texts.model, tower.text.vocabulary)
    tokenise = functools.partial(
        item_tokens.tokenize_once, tokenizer, distinct, texts.max_tokens, folder
    )
    distributed.leader_first(tokenise)
    tokens = tokenise()
    say(
        f"item texts: {len(tokens):,} of {len(composed) - 1:,} items, {tokens.cut:,} cut to "
        f"{texts.max_tokens} tokens"
    )
    shape = Shape.of(texts, tower, mesh.size, int(tokens.lengths.max()))
    draw = _draw(config, model, counts)

    def put(step: int, batch: Batch) -> TextBatch:
        # all processes see the whole batch: they pack the same rows and hold their part of them
        whole = distributed.gather_rows(batch)
        negatives = Negatives(*map(np.asarray, draw(step)))
        with_texts = attach(
            whole, negatives, text_of_item=text_of_item, tokens=tokens, shape=shape, end=tower.end
        )
        return distributed.spread(with_texts, text_step.shardings(mesh))

    encoder, known = text_vectors.encoder(tower, mesh), KnownTexts(distinct, tokens)

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
        items = params[table.ITEM]
        embedding = text_table.filled(encoded.vectors, np.asarray(items[table.MEAN]))
        embedding = distributed.spread(embedding, items[table.EMBEDDING].sharding)
        distributed.leader_first(lambda: _remove_others(encoded.folder))
        return {**params, table.ITEM: {**items, table.EMBEDDING: embedding}}

    return TextItems(tower, put, refresh)


def _draw(config: Config, model: Model, counts: np.ndarray) -> Callable[[int], Negatives]:
    """Step number -> the negatives that the step would draw itself."""
    uniform = config.loss.sampling == "uniform"
    sampler = None if uniform else sampling.make_sampler(counts)

    @jax.jit
    def draw(step: int) -> Negatives:
        return model.negatives(step_lib.step_key(config.seed, step), sampler)

    return draw


def _remove_others(folder: Path) -> None:
    """Removes vectors of earlier parameters: a checkpoint has those it needs."""
    for other in folder.parent.iterdir():
        if other != folder:
            shutil.rmtree(other, ignore_errors=True)


def with_tower(
    init: Callable[[jax.Array], Params], tower: ItemTower
) -> Callable[[jax.Array], Params]:
    """`init` with the tower's parameters next to those of the model."""

    def init_both(rng: jax.Array) -> Params:
        return {**init(rng), TOWER: tower.init(jax.random.fold_in(rng, 1))}

    return init_both
