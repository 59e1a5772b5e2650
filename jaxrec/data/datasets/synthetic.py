"""Lifelong histories with planted long-range structure, so that what compression keeps is known.

The catalog has three kinds of items:
  - item 1, the *occasion*;
  - *durable* items (about half): each user owns a few of them, the favourites, drawn early on
    from distinct interests;
  - *everyday* items, in `interests` groups, bought in sessions: inside a session the next item
    is usually the next of its group.

A history is a run of everyday sessions. Early on every favourite appears several times, each
time after an occasion. Then, again and again, a favourite comes back after an occasion, at
least `gap` events after it was last seen. An occasion is followed by a return with probability
`returns`, by an everyday event otherwise. `Interactions.returning` marks the returns.

What can be predicted: everyday events from the event before; a return from nothing that lies
within the last `gap` events: the recent window tells at most which favourites are not due, and
favourites are independent of each other, so a model that sees only the window can do no better
than a uniform guess among the durable items (Recall@10 about 10 / durable items). One that
remembers the early favourites has few candidates left (the other favourites). The distance of a
return from the last appearance is `gap` to 4/3 `gap` everyday events and what was planted between
them (together up to about 1.5 `gap`): a layout whose segments cover that much can know it.

Any size: users are generated in chunks, each from a generator keyed by (seed, chunk).
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from jaxrec.config import DataConfig, SyntheticConfig
from jaxrec.data.digests import Digest
from jaxrec.data.raw import Chunk, Names, Raw
from jaxrec.data.schema import Interactions
from jaxrec.errors import DataError
from jaxrec.types import Json

VERSION = 1
OCCASION = 1  # raw id of the item that announces a return
FAVOURITES = 8  # most favourites per user, where `favourites` is not set
REPEATS = 3  # early appearances of a favourite
SESSION = 8  # mean events of a session
STEP = 0.9  # probability that a session goes on to the next item of its group
START = 1_500_000_000  # seconds since 1970, earliest first event
YEARS = 10 * 31_556_952  # seconds that a history spans at most, about
CHUNK = 1024  # users generated together


def fingerprint(config: DataConfig, digest: Digest) -> Json:
    """Identifies the content of the source (see `jaxrec.data.datasets.fingerprint`)."""
    del digest  # of files; there are none
    return {"reader": VERSION}


def read(config: DataConfig, downloads: Path) -> Raw:
    """Histories of `config.synthetic`, seeded with `config.seed`."""
    source = "data.dataset=synthetic"
    _check(config.synthetic)

    def chunks() -> Iterator[Chunk]:
        import polars as pl

        columns = ("user", "item", "time", "returning")
        row = 0
        for part in _chunks(config.synthetic, config.seed):
            frame = pl.DataFrame(dict(zip(columns, part, strict=True)))
            yield Chunk(frame, source, row)
            row += len(frame)

    return Raw(chunks, Names("user", "item", "time"), source)


def durable_items(config: SyntheticConfig) -> np.ndarray:
    """Raw ids of the durable items, among which favourites are drawn."""
    return np.arange(OCCASION + 1, OCCASION + 1 + (config.items - 1) // 2)


def is_everyday(items: np.ndarray, config: SyntheticConfig) -> np.ndarray:
    """Which raw ids are everyday items, bool [N]."""
    return items > durable_items(config)[-1]


def chance_of_return(everyday: np.ndarray, config: SyntheticConfig) -> np.ndarray:
    """Probability that a favourite returns now if it did not before.

    everyday: everyday events since it was last seen.
    """
    left = config.gap + _spread(config) - everyday + 1
    return np.where(everyday < config.gap, 0.0, 1 / np.maximum(left, 1))


def _spread(config: SyntheticConfig) -> int:
    """A favourite returns after `gap` to `gap` + this many everyday events, each as likely."""
    return max(config.gap // 3, 12)


def generate(config: SyntheticConfig, seed: int) -> Interactions:
    """`users` histories of `events` / 2 to 3/2 `events` events, users 1..users, items 1..items."""
    _check(config)
    chunks = list(_chunks(config, seed))
    user, item, time, returning = (np.concatenate(column) for column in zip(*chunks, strict=True))
    return Interactions(user, item, time, returning)


def _check(config: SyntheticConfig) -> None:
    if config.items < 4:
        raise DataError(
            f"data.synthetic.items={config.items}: at least 4 are needed, the occasion, a durable "
            "item and two everyday ones"
        )
    groups = min(config.interests, len(durable_items(config)))
    if config.favourites > groups:
        raise DataError(
            f"data.synthetic.favourites={config.favourites}: at most {groups}, as many interests "
            "as have durable items (half of data.synthetic.items)"
        )


def _chunks(config: SyntheticConfig, seed: int) -> Iterator[tuple[np.ndarray, ...]]:
    for number, first in enumerate(range(0, config.users, CHUNK)):
        users = min(CHUNK, config.users - first)
        rng = np.random.default_rng([seed % 2**64, number])
        user, item, time, returning = _histories(config, users, rng)
        yield user + first + 1, item, time, returning


def _histories(
    config: SyntheticConfig, users: int, rng: np.random.Generator
) -> tuple[np.ndarray, ...]:
    """user 0..users-1, item, time, returning of one chunk, users in order, events in time order."""
    low, high = max(2, config.events // 2), max(2, config.events * 3 // 2)
    lengths = rng.integers(low, high + 1, users)
    favourites = _favourites(config, users, rng)
    user, item, position, jump = _everyday(config, lengths, rng)
    planted = _planted(config, lengths, favourites, rng)
    # An occasion and what follows it stand between the everyday events `slot - 1` and `slot`;
    # everyday events are never dropped in between, so distances only grow by inserting.
    user = np.concatenate([user, *(p[0] for p in planted)])
    item = np.concatenate([item, *(p[1] for p in planted)])
    slot = np.concatenate([position, *(p[2] for p in planted)])
    pair = np.concatenate([np.full(len(position), 2.0), *(p[3] for p in planted)])
    second = np.concatenate([np.zeros(len(position), bool), *(p[4] for p in planted)])
    returning = np.concatenate([np.zeros(len(position), bool), *(p[5] for p in planted)])
    jump = np.concatenate([jump, np.zeros(len(user) - len(jump), bool)])
    order = np.lexsort((second, pair, slot, user))
    user, item, returning, jump = user[order], item[order], returning[order], jump[order]
    count = np.bincount(user, minlength=users)
    rank = np.arange(len(user)) - np.repeat(np.cumsum(count) - count, count)
    kept = rank < lengths[user]
    user, item, returning, jump = user[kept], item[kept], returning[kept], jump[kept]
    return user, item, _times(user, jump, lengths, rng), returning


def _favourites(config: SyntheticConfig, users: int, rng: np.random.Generator) -> np.ndarray:
    """[users, F] durable items, each of another interest (durable item i has interest i mod I)."""
    durable = durable_items(config)
    interests = min(config.interests, len(durable))
    # returns come at a rate of F per `gap` events: few favourites when the gap is small
    few = int(np.clip(config.gap // 12, 1, min(FAVOURITES, interests)))
    number = config.favourites or few
    chosen = np.argsort(rng.random((users, interests)), axis=1)[:, :number]
    sizes = (len(durable) - chosen - 1) // interests + 1  # items of each chosen interest
    return durable[chosen + interests * (rng.random(chosen.shape) * sizes).astype(np.int64)]


def _everyday(
    config: SyntheticConfig, lengths: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, ...]:
    """user, item, position in the stream, first-of-session of `lengths` everyday events a user."""
    first = durable_items(config)[-1] + 1
    size = config.items + 1 - first
    groups = min(config.interests, size)
    total = int(lengths.sum())
    user = np.repeat(np.arange(len(lengths)), lengths)
    position = np.arange(total) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    opens = (rng.random(total) < 1 / SESSION) | (position == 0)
    session = np.cumsum(opens) - 1
    group = rng.integers(0, groups, session[-1] + 1)[session]
    members = (size - group - 1) // groups + 1  # everyday item j has group j mod groups
    # a walk: one step on, or a jump anywhere in the group
    step = np.where(rng.random(total) < STEP, 1, rng.integers(0, size, total))
    walk = np.cumsum(np.where(opens, rng.integers(0, size, total), step))
    return user, first + group + groups * (walk % members), position, opens


def _planted(
    config: SyntheticConfig,
    lengths: np.ndarray,
    favourites: np.ndarray,
    rng: np.random.Generator,
) -> list[tuple[np.ndarray, ...]]:
    """Occasions and what follows: (user, item, slot, pair, second of the pair, returning)."""
    users, number = favourites.shape
    # early: every favourite REPEATS times, spread over a stretch at the beginning
    stretch = max(2 * number * REPEATS, 1)
    early = rng.integers(0, stretch, (users, number, REPEATS))
    # later: a renewal process per favourite, gap to 4/3 gap everyday events between appearances
    cycles = int(lengths.max()) // max(config.gap, 12) + 1 if config.returns else 0
    wait = config.gap + rng.integers(0, _spread(config) + 1, (users, number, cycles))
    later = early.max(-1)[..., None] + 1 + np.cumsum(wait, -1)
    slots = np.concatenate([early, later], -1)
    user, favourite, turn = (a.ravel() for a in np.indices(slots.shape))
    slot = slots.ravel()
    fits = slot < lengths[user]
    user, favourite, turn, slot = user[fits], favourite[fits], turn[fits], slot[fits]
    returning = turn >= REPEATS
    item = favourites[user, favourite]
    pair = rng.random(len(slot))  # keeps the two events of a pair together
    no = np.zeros(len(slot), bool)
    cues = (user, np.full(len(slot), OCCASION), slot, pair, no, no)
    planted: list[tuple[np.ndarray, ...]] = [cues, (user, item, slot, pair, ~no, returning)]
    # occasions without a return, as many as make `returns` the share of those with one, where
    # returns happen: behind every pair of its slot, right before an everyday event
    if returning.any():
        expected = returning.sum() * (1 - config.returns) / config.returns
        extra = rng.choice(user[returning], round(expected))
        start = np.minimum(stretch + config.gap, lengths[extra] - 1)
        slot = start + (rng.random(len(extra)) * (lengths[extra] - start)).astype(np.int64)
        no = np.zeros(len(extra), bool)
        cue = np.full(len(extra), OCCASION)
        planted.append((extra, cue, slot, np.full(len(extra), 1.0), no, no))
    return planted


def _times(
    user: np.ndarray, jump: np.ndarray, lengths: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Seconds since 1970: minutes inside a session, about a day between sessions."""
    wait = rng.exponential(300.0, len(user)) + jump * rng.exponential(86_400.0, len(user))
    longest = int(lengths.max()) * (300.0 + 86_400.0 / SESSION)
    wait = np.ceil(wait * min(1.0, YEARS / longest))
    total = np.cumsum(wait)
    count = np.bincount(user, minlength=len(lengths))
    begin = np.cumsum(count) - count
    elapsed = total - np.repeat(total[begin], count)
    start = START + rng.integers(0, 31_556_952, len(lengths))
    return start[user] + elapsed.astype(np.int64)
