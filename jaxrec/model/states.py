"""User states as values: compress a history once, extend it, compute recommendations.

All functions are pure and take a batch of users with histories of any length. Their results equal
those of one masked forward pass over the whole history (a property test, for every backbone).
"""

import jax
import jax.numpy as jnp

from jaxrec import ranking
from jaxrec.model import token_memory
from jaxrec.model.recommender import Model
from jaxrec.types import Array, Batch, HistoryItems, Params, Queries, UserState


def empty(model: Model, batch: int) -> UserState:
    """States of `batch` users without events. Raises ValueError without compressed tokens."""
    config, layout = model.network.config, model.layout
    if layout.fixed or layout.num_tokens == 0:
        raise ValueError(
            "user states need a layout with compressed tokens (layout.mode=compressed)"
        )
    recent = layout.segments[-1][0]
    count = jnp.zeros((batch,), jnp.int32)
    return UserState(
        tokens=token_memory.empty(config, layout, batch),
        readout=jnp.zeros((batch, config.width), jnp.float32),
        memory=jnp.zeros((batch, _remembered(model)), jnp.int32),
        memory_times=jnp.zeros((batch, _remembered(model)), jnp.int32),
        items=jnp.zeros((batch, recent), jnp.int32),
        times=jnp.zeros((batch, recent), jnp.int32),
        pending=count,
        segments=count,
        events=count,
    )


def _remembered(model: Model) -> int:
    """How many items of compressed segments a state remembers; 0 unless scores count repeats."""
    layout = model.layout
    return layout.max_segments * layout.segments[0][0] if model.half_lives.number else 0


def append_segment(
    model: Model,
    params: Params,
    state: UserState,
    items: Array,
    times: Array,
    where: Array,
) -> UserState:
    """Compresses one complete segment after the state of the users in `where`.

    items, times: int32 [B, n] of the segment. where: bool [B]; other users keep their state. The
    oldest segment drops off; pending events stay as they are.
    """
    layout = model.layout.extension()
    size, _ = layout.segments[0]
    lengths = jnp.full((items.shape[0], 1), size, jnp.int32)
    after = jnp.concatenate([times, times[:, -1:]], axis=1)
    y, new = model.forward(
        params, items, layout, lengths, after, kv=state.tokens, first=state.segments
    )

    def remember(old: Array, fresh: Array) -> Array:
        if not old.shape[1]:
            return old
        return jnp.where(where[:, None], token_memory.push(old, fresh, 1), old)

    tokens = token_memory.push_segment(state.tokens, new)
    return state._replace(
        tokens=token_memory.select_users(where, tokens, state.tokens),
        readout=jnp.where(where[:, None], y[:, -1], state.readout),
        memory=remember(state.memory, items),
        memory_times=remember(state.memory_times, times),
        segments=state.segments + where,
    )


def extend(
    model: Model,
    params: Params,
    state: UserState,
    items: Array,
    times: Array,
    counts: Array,
) -> UserState:
    """Adds new events and compresses completed segments, without reading older raw events.

    items, times: int32 [B, M], oldest first, the first `counts` [B] of a row are valid.
    When the recent window reaches `r_min + n` events its oldest n become a segment. The loop runs
    as often as the user with the most segments needs.
    """
    size, recent = model.layout.segments[0][0], model.layout.segments[-1][0]
    recent_min = recent - size + 1
    more = items.shape[1]
    total = state.pending + counts
    column = jnp.arange(recent + more)[None]
    # pending events, then the new ones right after them
    new_column = column - state.pending[:, None]
    source = jnp.where(new_column < 0, column, recent + jnp.clip(new_column, 0, max(more - 1, 0)))
    exists = column < total[:, None]

    def line_up(old: Array, new: Array) -> jax.Array:
        joined = jnp.concatenate([old, new], axis=1)
        return jnp.where(exists, jnp.take_along_axis(joined, source, axis=1), 0)

    line, line_times = line_up(state.items, items), line_up(state.times, times)
    complete = jnp.maximum(total - recent_min, 0) // size

    def body(carry: tuple[jax.Array, UserState]) -> tuple[jax.Array, UserState]:
        index, current = carry
        start = jnp.minimum(index * size, recent + more - size)
        cut = lambda x: jax.lax.dynamic_slice_in_dim(x, start, size, axis=1)  # noqa: E731
        where = index < complete
        return index + 1, append_segment(model, params, current, cut(line), cut(line_times), where)

    needed = complete.max()
    if recent + more >= size + recent_min:
        _, state = jax.lax.while_loop(lambda c: c[0] < needed, body, (jnp.int32(0), state))
    pending = total - complete * size
    window = jnp.arange(recent)[None] + (complete * size)[:, None]
    window = jnp.minimum(window, recent + more - 1)
    keep = jnp.arange(recent)[None] < pending[:, None]
    pick = lambda x: jnp.where(keep, jnp.take_along_axis(x, window, axis=1), 0)  # noqa: E731
    return state._replace(
        items=pick(line),
        times=pick(line_times),
        pending=pending,
        events=state.events + counts,
    )


def compress(model: Model, params: Params, items: Array, times: Array, counts: Array) -> UserState:
    """States of whole histories [B, M] (oldest first, `counts` [B] valid): `extend` from empty."""
    return extend(model, params, empty(model, items.shape[0]), items, times, counts)


def recent_outputs(
    model: Model, params: Params, state: UserState, now: Array | None = None
) -> jax.Array:
    """float32 [B, R, D] outputs of the encoder over the recent window, given the state.

    now: int32 [B] time of the request for models that use it; default: the last event's time.
    """
    layout = model.layout.request()
    recent = layout.num_items
    last = jnp.take_along_axis(state.times, jnp.maximum(state.pending - 1, 0)[:, None], axis=1)
    request_time = last if now is None else now[:, None]
    times = jnp.concatenate([state.times, jnp.zeros_like(request_time)], axis=1)
    behind_last = jnp.arange(recent + 1)[None] == state.pending[:, None]
    times = jnp.where(behind_last, request_time, times)
    y, _ = model.forward(
        params, state.items, layout, state.pending[:, None], times, kv=state.tokens
    )
    return y


def query(model: Model, params: Params, state: UserState, now: Array | None = None) -> Queries:
    """Queries [B, ...] for each user's next event.

    With an empty recent window the newest token's output makes the query; a user without any
    event gets zeros (callers fall back to popularity). now: as in `recent_outputs`.
    """
    y = recent_outputs(model, params, state, now)
    index = jnp.maximum(state.pending - 1, 0)[:, None, None]
    last = jnp.take_along_axis(y, index, axis=1)[:, 0]
    x = jnp.where((state.pending > 0)[:, None], last, state.readout)
    queries = model.queries(params, x)
    return jax.tree.map(lambda a: jnp.where((state.events > 0)[:, None], a, 0.0), queries)


def history_items(model: Model, state: UserState) -> HistoryItems | None:
    """History items that belong to `query`; None when scores do not depend on them."""
    items = jnp.concatenate([state.memory, state.items], axis=1)
    return model.history_items(items, jnp.concatenate([state.memory_times, state.times], axis=1))


def score(model: Model, params: Params, state: UserState, now: Array | None = None) -> jax.Array:
    """float32 [B, V + 1] scores of all items as each user's next event; entry 0 is padding.

    now: as in `recent_outputs`.
    """
    queries, history = query(model, params, state, now), history_items(model, state)
    return ranking.scores(queries, model.item_index(params), history)


def recommend(
    model: Model,
    params: Params,
    state: UserState,
    now: Array | None = None,
    k: int = 10,
    *,
    exclude: Array | None = None,
    chunk: int = 16384,
    block: int = 1024,
) -> tuple[jax.Array, jax.Array]:
    """The k best of `score`, best first: scores float32 [B, k] and item ids int32 [B, k].

    exclude, chunk, block: as in `ranking.top_k`. The scores of the whole catalog are never in
    memory.
    """
    return ranking.top_k(
        query(model, params, state, now),
        model.item_index(params),
        k,
        exclude=exclude,
        history=history_items(model, state),
        chunk=chunk,
        block=block,
    )


def predict_cached(model: Model, params: Params, batch: Batch) -> Queries:
    """`Model.predict` through states: segments compressed one by one, then the recent window.

    [B, E + 1, ...]; only slots predicted from the recent window (or, when it is empty, by the
    newest token) are filled, the others are zero.
    """
    layout = model.layout
    size, slots = layout.segments[0][0], layout.num_segments - 1
    state = empty(model, batch.items.shape[0])
    for s in range(slots):
        cut = slice(s * size, (s + 1) * size)
        state = append_segment(
            model, params, state, batch.items[:, cut], batch.times[:, cut], batch.lengths[:, s] > 0
        )
    start = slots * size
    pending = batch.lengths[:, -1]
    state = state._replace(
        items=jnp.asarray(batch.items[:, start:-1]),
        times=jnp.asarray(batch.times[:, start:-1]),
        pending=jnp.asarray(pending),
    )
    request = model.layout.request()
    y, _ = model.forward(
        params, state.items, request, pending[:, None], batch.times[:, start:], kv=state.tokens
    )

    def in_slots(first: jax.Array, recent: jax.Array) -> jax.Array:
        empty_slots = jnp.zeros((recent.shape[0], start, recent.shape[-1]), recent.dtype)
        return jnp.concatenate([empty_slots, first[:, None], recent], axis=1)

    return jax.tree.map(in_slots, model.queries(params, state.readout), model.queries(params, y))
