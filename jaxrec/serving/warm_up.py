"""Compiles, before the first request, every program that requests and appends can need."""

from collections.abc import Iterator

import numpy as np

from jaxrec.serving import state_rows
from jaxrec.serving.compiled import CompiledModel
from jaxrec.state_store.encodings import decode_state
from jaxrec.state_store.row_format import Columns, RowSpec


def warm_up(model: CompiledModel, spec: RowSpec, encoding: str) -> int:
    """Runs each function once for every combination of `model.shapes`; returns the programs.

    spec, encoding: of the store's rows. Afterwards nothing compiles for a request of at most the
    largest sizes.
    """
    before = model.traces.total()
    row = spec.unpack(np.zeros((1, spec.row_bytes), np.uint8))
    for users in model.shapes.users:
        columns = {n: np.repeat(c, users, 0) for n, c in row.items() if n != state_rows.SEEN}
        _requests(model, columns, encoding, users)
        _appends(model, columns, encoding, users)
    return model.traces.total() - before


def _requests(model: CompiledModel, columns: Columns, encoding: str, users: int) -> None:
    known = model.queries(columns, encoding), model.items
    unknown = model.popularity_queries(users), model.popularity
    for queries, index in (known, unknown):
        for k in sorted({min(size, index.num_items) for size in model.shapes.lists}):
            model.top_k(queries, index, None, k=k)
            for ids in _rectangles(model, users):
                model.top_k(queries, index, ids, k=k)
        for ids in _rectangles(model, users):
            for k in sorted({min(size, ids.shape[1]) for size in model.shapes.lists}):
                model.top_k_of_candidates(queries, index, ids, k=k)


def _rectangles(model: CompiledModel, users: int) -> Iterator[np.ndarray]:
    for width in model.shapes.ids:
        yield np.zeros((users, width), np.int32)


def _appends(model: CompiledModel, columns: Columns, encoding: str, users: int) -> None:
    state = decode_state(columns, encoding)
    for more in model.shapes.events:
        items = np.zeros((users, model.config.layout.recent + more), np.int32)
        model.extend(model.params, state, items, items, np.zeros(users, np.int32))
