"""Repeat-aware scoring: how often and how long ago a user had an item adds to its score.

    score(v) = <x, e_v> + Σ_k g_k · log(1 + c_k(v)),   c_k(v) = Σ_{i: item_i = v} 2^(-a_i / h_k)

a_i is the age of event i at the query, in events or in seconds, h_k a half-life (0: never
forgotten), g [K] the query's gates (learned, from the encoder's output). Where people buy
the same things again, these counts say what a fixed number of compressed tokens cannot hold for
thousands of items; repeat consumption as a separate term is as in RepeatNet (arXiv 1812.02646),
personal frequency as in TIFU-KNN (arXiv 2006.00556). With a half-life of a second a count tells
what is already in the same basket or session.

The clock of a query is the time of the newest event before it, so a count does not depend on when
a recommendation is requested.

Dimension letters: M events, oldest first, K features (half-lives in events, then those in
seconds), N candidates. Item 0 is padding and does not age counts; `times` are int32 seconds >= 0.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.config import ModelConfig
from jaxrec.types import PAD, Array, HistoryItems

# Candidates whose counts are followed at a time. Of 1,024 negatives drawn by popularity, windows of
# 500 events of The Complete Journey hold 47 (median; at most 87 in 960 windows).
CAPACITY = 128


class HalfLives(NamedTuple):
    """Half-lives of counts, in events and in seconds; 0: never forgotten."""

    events: tuple[float, ...] = ()
    seconds: tuple[float, ...] = ()

    @classmethod
    def of(cls, config: ModelConfig) -> "HalfLives":
        """The half-lives of a configuration; none unless its scores count repeats."""
        return cls(config.repeat_half_lives, config.repeat_half_times)

    @property
    def number(self) -> int:
        """K, features of an item."""
        return len(self.events) + len(self.seconds)

    def decay(self, events: Array, seconds: Array) -> jax.Array:
        """float32 [..., K]: the factors of counts after `events` [...] and `seconds` [...]."""
        ages = []
        for elapsed, half_lives in ((events, self.events), (seconds, self.seconds)):
            rates = np.asarray([1 / h if h else 0.0 for h in half_lives], np.float32)
            rates = rates.reshape((1,) * np.ndim(elapsed) + (-1,))
            ages.append(jnp.asarray(elapsed).astype(jnp.float32)[..., None] * rates)
        return jnp.exp2(-jnp.concatenate(ages, axis=-1))


def feature(counts: jax.Array) -> jax.Array:
    """log(1 + c) of counts c: the tenth purchase tells less than the first."""
    return jnp.log1p(counts)


def _clock(items: jax.Array, times: jax.Array) -> jax.Array:
    """int32 [..., M]: time of the newest event so far."""
    return jax.lax.cummax(jnp.where(items != PAD, times, 0), axis=items.ndim - 1)


def _runs(items: jax.Array, times: jax.Array, half_lives: HalfLives) -> tuple[jax.Array, ...]:
    """Per event: (after [..., M, K], before [..., M, K], newest bool [..., M]).

    before, after: counts of the event's own item just before and just after the event; newest: no
    later event has the same item.
    """
    rank = jnp.cumsum(items != PAD, axis=-1)
    clock = _clock(items, times)
    earlier_clock = jnp.concatenate([jnp.zeros_like(clock[..., :1]), clock[..., :-1]], axis=-1)
    # a run: the events of one item side by side, oldest first
    order = jnp.argsort(items, axis=-1, stable=True)
    take = lambda a: jnp.take_along_axis(a, order, axis=-1)  # noqa: E731
    run_items, run_rank, run_times = take(items), take(rank), take(times)
    # padding is no run: its times may decrease, and a count that grows without bound would spoil
    # the rest of the scan
    same = (run_items[..., 1:] == run_items[..., :-1]) & (run_items[..., 1:] != PAD)

    def since_last(rank: jax.Array, time: jax.Array) -> jax.Array:
        """[..., M, K] decay since the run's last event; 0 where a run starts."""
        elapsed = rank[..., 1:] - run_rank[..., :-1], time[..., 1:] - run_times[..., :-1]
        factors = jnp.where(same[..., None], half_lives.decay(*elapsed), 0.0)
        return jnp.concatenate([jnp.zeros_like(factors[..., :1, :]), factors], axis=-2)

    def combine(a: tuple[jax.Array, ...], b: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        return a[0] * b[0], b[0] * a[1] + b[1]

    keep = since_last(run_rank, run_times)
    _, after = jax.lax.associative_scan(combine, (keep, jnp.ones_like(keep)), axis=keep.ndim - 2)
    before = jnp.roll(after, 1, axis=-2) * since_last(run_rank - 1, take(earlier_clock))
    last = jnp.concatenate([~same, jnp.ones_like(same[..., :1])], axis=-1)
    inverse = jnp.argsort(order, axis=-1)
    restore = lambda a: jnp.take_along_axis(a, inverse[..., None], axis=-2)  # noqa: E731
    newest = jnp.take_along_axis(last, inverse, axis=-1) & (items != PAD)
    return restore(after), restore(before), newest


def history_items(items: Array, times: Array, half_lives: HalfLives) -> HistoryItems:
    """A user's distinct items and their features for a query after the last event.

    items, times: int32 [..., M] -> ids int32 [..., M], 0 except at each item's newest event;
    features float32 [..., M, K], 0 where the id is 0.
    """
    items, times = jnp.asarray(items), jnp.asarray(times)
    after, _, newest = _runs(items, times, half_lives)
    rank, clock = jnp.cumsum(items != PAD, axis=-1), _clock(items, times)
    age = rank[..., -1:] - rank, clock[..., -1:] - jnp.where(items != PAD, times, 0)
    ids = jnp.where(newest, items, PAD)
    features = feature(after * half_lives.decay(*age))
    return HistoryItems(ids, jnp.where(newest[..., None], features, 0.0))


def event_features(items: Array, times: Array, half_lives: HalfLives) -> jax.Array:
    """float32 [..., M, K]: features of every event's own item just before the event."""
    items, times = jnp.asarray(items), jnp.asarray(times)
    _, before, _ = _runs(items, times, half_lives)
    return jnp.where((items != PAD)[..., None], feature(before), 0.0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def candidate_bonus(
    gates: jax.Array,
    items: jax.Array,
    times: jax.Array,
    candidates: jax.Array,
    half_lives: HalfLives,
) -> jax.Array:
    """float32 [B, M, N]: what gates [B, M, K] add to shared candidates [N] after each event.

    items, times: int32 [B, M]. Only candidates that occur in a user's history are counted,
    CAPACITY of them at a time, in as many rounds as the user with most of them needs. The
    gradient counts again and flows to the gates alone: features [B, M, N, K] are never in memory.
    """
    return _candidate_forward(gates, items, times, candidates, half_lives)[0]


class _Matches(NamedTuple):
    """Which of N candidates occur in each user's history.

    order: int32 [B, N] indices of candidates, those that occur first. number: int32 [] of
    candidates that occur, of the user with most of them.
    """

    order: jax.Array
    number: jax.Array

    @classmethod
    def of(cls, items: jax.Array, candidates: jax.Array) -> "_Matches":
        """Those of histories [B, M] and candidates [N]; padding never occurs."""
        occurs = (items[:, :, None] == candidates[None, None, :]).any(axis=1) & (candidates != PAD)[
            None
        ]
        order = jnp.argsort(~occurs, axis=-1, stable=True).astype(jnp.int32)
        return cls(order, jnp.max(jnp.sum(occurs, axis=-1), initial=0))

    @property
    def width(self) -> int:
        """C, candidates of a round."""
        return min(CAPACITY, self.order.shape[1])

    def columns(self, candidates: jax.Array, start: Array) -> tuple[jax.Array, jax.Array]:
        """Index [B, C] and item [B, C] of candidates start..start + C in the order.

        Behind the last candidate the index is N or more and the item is padding.
        """
        users, number = self.order.shape
        behind = jnp.arange(number, number + -number % self.width)
        behind = jnp.broadcast_to(behind, (users, len(behind)))
        order = jnp.concatenate([self.order, behind], axis=1)
        index = jax.lax.dynamic_slice_in_dim(order, start, self.width, axis=1)
        return index, jnp.take(candidates, index, mode="fill", fill_value=PAD)

    def rounds(self, add: Callable[[Array, jax.Array], jax.Array], total: jax.Array) -> jax.Array:
        """`total` after add(start, total) for all rounds that hold a candidate that occurs."""
        number = (self.number + self.width - 1) // self.width
        return jax.lax.fori_loop(0, number, lambda r, total: add(r * self.width, total), total)


# A TPU reads and writes single columns slowly and multiplies fast. A product with ones and zeros is
# exact at full precision.


def _put_columns(total: jax.Array, index: jax.Array, columns: jax.Array) -> jax.Array:
    """[B, M, N] `total` with `columns` [B, M, C] at index [B, C], where it was zero.

    An index of N or more is nowhere.
    """

    def write(total: jax.Array, index: jax.Array, columns: jax.Array) -> jax.Array:
        at = total.at[_elements(total, index)]
        return at.set(columns, mode="drop", unique_indices=True)

    def multiply(total: jax.Array, index: jax.Array, columns: jax.Array) -> jax.Array:
        chosen = index[:, :, None] == jnp.arange(total.shape[2])[None, None]
        return total + _product("bmc,bcn->bmn", columns, chosen)

    return jax.lax.platform_dependent(total, index, columns, tpu=multiply, default=jax.vmap(write))


def _take_columns(a: jax.Array, index: jax.Array) -> jax.Array:
    """[B, M, C]: columns index [B, C] of a [B, M, N]; any number where the index is N or more."""

    def read(a: jax.Array, index: jax.Array) -> jax.Array:
        return a.at[_elements(a, index)].get(mode="clip")

    def multiply(a: jax.Array, index: jax.Array) -> jax.Array:
        chosen = index[:, :, None] == jnp.arange(a.shape[2])[None, None]
        return _product("bmn,bcn->bmc", a, chosen)

    return jax.lax.platform_dependent(a, index, tpu=multiply, default=jax.vmap(read))


def _elements(a: jax.Array, index: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Columns index [C] of a [M, N], element by element: for whole columns XLA turns `a` around."""
    return jnp.arange(a.shape[0])[:, None], index[None, :]


def _product(axes: str, a: jax.Array, chosen: jax.Array) -> jax.Array:
    return jnp.einsum(axes, a, chosen.astype(a.dtype), precision=jax.lax.Precision.HIGHEST)


def _walk(
    combine: Callable[[list[jax.Array], jax.Array], jax.Array],
    items: jax.Array,
    times: jax.Array,
    followed: jax.Array,
    half_lives: HalfLives,
    weights: jax.Array,
) -> jax.Array:
    """[M, ...] of `combine(features K x [B, C], weights[m])` after every event m.

    followed: int32 [B, C], items of each user.
    """
    clock = _clock(items, times)
    elapsed = jnp.diff(clock, axis=-1, prepend=clock[:, :1])
    decay = half_lives.decay((items != PAD).astype(jnp.int32), elapsed)  # [B, M, K]

    def step(
        counts: list[jax.Array], event: tuple[jax.Array, ...]
    ) -> tuple[list[jax.Array], jax.Array]:
        item, factors, weight = event
        exists = (item != PAD)[:, None]
        hit = ((item[:, None] == followed) & exists).astype(jnp.float32)
        counts = [count * factors[:, k, None] + hit for k, count in enumerate(counts)]
        return counts, combine([jnp.log(1 + count) for count in counts], weight)

    zeros = jnp.zeros(followed.shape, jnp.float32)
    events = items.T, jnp.swapaxes(decay, 0, 1), weights
    _, combined = jax.lax.scan(step, [zeros] * half_lives.number, events)
    return combined


# items, times, candidates, matches
_Residuals: TypeAlias = tuple[jax.Array, jax.Array, jax.Array, _Matches]


def _candidate_forward(
    gates: jax.Array,
    items: jax.Array,
    times: jax.Array,
    candidates: jax.Array,
    half_lives: HalfLives,
) -> tuple[jax.Array, _Residuals]:
    matches = _Matches.of(items, candidates)
    weights = jnp.swapaxes(gates, 0, 1)

    def weigh(features: list[jax.Array], gate: jax.Array) -> jax.Array:
        return sum(gate[:, k, None] * f for k, f in enumerate(features))  # type: ignore[return-value]

    def add(start: Array, total: jax.Array) -> jax.Array:
        index, followed = matches.columns(candidates, start)
        bonus = _walk(weigh, items, times, followed, half_lives, weights)
        return _put_columns(total, index, jnp.swapaxes(bonus, 0, 1))

    zeros = jnp.zeros((*items.shape, len(candidates)), jnp.float32)
    return matches.rounds(add, zeros), (items, times, candidates, matches)


def _candidate_backward(
    half_lives: HalfLives, residuals: _Residuals, cotangent: jax.Array
) -> tuple[jax.Array, None, None, None]:
    items, times, candidates, matches = residuals

    def reduce(features: list[jax.Array], weight: jax.Array) -> jax.Array:
        return jnp.stack([jnp.sum(f * weight, axis=-1) for f in features], axis=-1)

    def add(start: Array, total: jax.Array) -> jax.Array:
        index, followed = matches.columns(candidates, start)
        weights = jnp.swapaxes(_take_columns(cotangent, index), 0, 1)
        return total + _walk(reduce, items, times, followed, half_lives, weights)

    users, events = items.shape
    zeros = jnp.zeros((events, users, half_lives.number), jnp.float32)
    return jnp.swapaxes(matches.rounds(add, zeros), 0, 1), None, None, None


candidate_bonus.defvjp(_candidate_forward, _candidate_backward)
