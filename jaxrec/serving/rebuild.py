"""A new model's store beside the old one, and stores that several processes make together."""

import time
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from jaxrec.data.prepared import Prepared
from jaxrec.errors import StoreError
from jaxrec.serving.build import check_data, everything, write_histories
from jaxrec.serving.rows import seen_capacity
from jaxrec.serving.service import BATCH, Recommender, Track
from jaxrec.state_store.metadata import STORE_FILE, open_root, read_json
from jaxrec.state_store.store import Url, UserStateStore
from jaxrec.types import UserId

# How long a process waits for another one that is making the same store.
CREATE_TIMEOUT = 60.0


class Rebuilt(NamedTuple):
    """users: states written; there_before: users whom the new store had already.

    missing: users of the old store without a prepared history, not written (all their events
    were appended); shorter: users written from fewer events than their old state covers. The
    events of both came after the data was prepared: append them to the new store.
    """

    users: int
    there_before: int
    missing: int
    shorter: int


def rebuild(
    rec: Recommender,
    old: UserStateStore,
    store: UserStateStore,
    prepared: Prepared,
    track: Track = everything,
) -> Rebuilt:
    """Compresses every user of `old` anew, by another model, from prepared histories.

    old: a store of any model, open in any mode, not changed. store: the one of `rec`, open for
    writing. Users that were deleted from `old` stay forgotten, although the prepared data may
    still hold them (`build_states` would make them again). Every batch is durable when the next
    one starts, so the same call goes on where a killed one stopped; users of shards that `store`
    does not hold for writing are left to other processes. track: shows progress over (batches,
    how many at most). Raises DataError when the prepared data is not what the model was trained
    on, and StoreError when both are the same store or a row is damaged.
    """
    check_data(rec, prepared)
    if old.metadata.identity == store.metadata.identity:
        raise StoreError(f"{store}: old and new store are the same; rebuild into a new place")
    order = np.argsort(prepared.users, kind="stable")
    names = prepared.users[order]
    ends = sum(old.num_ranges(shard) for shard in range(old.num_shards))
    most = ends + sum(shard.users // BATCH for shard in old.stat())
    total = np.zeros(len(Rebuilt._fields), np.int64)
    for ids, columns in track(old.iterate(BATCH), most):
        mine = store.owns(ids)
        if not mine.any():
            continue
        ids = [ids[i] for i in np.flatnonzero(mine)]
        _, there = store.read(ids)
        rows, known = _places(ids, names, order)
        todo = known & ~there
        users = rows[todo]
        if len(users):
            write_histories(rec, store, prepared, users)
        fewer = prepared.lengths[rows] < columns["events"][mine]
        total += [len(users), there.sum(), (~known & ~there).sum(), (todo & fewer).sum()]
    return Rebuilt(*total.tolist())


def _places(
    ids: list[UserId], names: np.ndarray, order: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(rows of the prepared data [B], 0 of unknown users; known bool [B])."""
    kind = str if names.dtype.kind == "U" else int
    alike = np.asarray([isinstance(user, kind) for user in ids], bool)
    asked = np.asarray([user if same else kind() for user, same in zip(ids, alike, strict=True)])
    place = np.minimum(np.searchsorted(names, asked), len(names) - 1)
    known = alike & (names[place] == asked)
    return np.where(known, order[place], 0), known


def identity(url: Url) -> str | None:
    """The name that the store at `url` got when it was made; None where there is none."""
    content, _ = read_json(open_root(url), STORE_FILE)
    return None if content is None else content["identity"]


def create_or_open(
    rec: Recommender,
    url: Url,
    *,
    form: str | None = None,
    keep_seen: int | None = None,
    num_shards: int | None = None,
    shards: Iterable[int] | None = None,
) -> UserStateStore:
    """The store at `url`, made when it is not there, open for writing `shards`.

    Several processes may start at the same time with shards of their own: one of them makes the
    store, the others wait for it. form, keep_seen, num_shards: None is the default of
    `Recommender.create_store`, and anything where the store exists. Raises StoreError when it
    exists and is not what was asked for.
    """
    wanted = {"form": form, "keep_seen": keep_seen, "num_shards": num_shards}
    given: dict[str, Any] = {name: value for name, value in wanted.items() if value is not None}
    deadline = time.monotonic() + CREATE_TIMEOUT
    while identity(url) is None:
        try:
            return rec.create_store(url, shards=shards, **given)
        except StoreError:
            # it may be there now: then another process was quicker
            if identity(url) is None and time.monotonic() > deadline:
                raise
            time.sleep(0.05)
    store = rec.open_store(url, shards=shards)
    found = described(store)
    wrong = [name for name, value in given.items() if value != found[name]]
    if wrong:
        store.close()
        names = "; ".join(f"{name}: store {found[name]}, given {given[name]}" for name in wrong)
        raise StoreError(f"{url}: there already is a store ({names}); choose another place")
    return store


def described(store: UserStateStore) -> dict[str, int | str]:
    """form, keep_seen and num_shards: what `create_store` was given."""
    return {
        "form": store.metadata.binding.form,
        "keep_seen": seen_capacity(store.spec),
        "num_shards": store.num_shards,
    }
