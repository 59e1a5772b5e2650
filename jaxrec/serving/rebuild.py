"""Rebuilds a store for a new model; creates stores that several processes share."""

import time
from collections.abc import Iterable
from typing import NamedTuple, TypedDict

import numpy as np

from jaxrec.data.prepared import Prepared
from jaxrec.errors import StoreError
from jaxrec.serving.buckets import BATCH
from jaxrec.serving.build import check_data, write_histories
from jaxrec.serving.service import Recommender
from jaxrec.serving.state_rows import seen_capacity
from jaxrec.serving.tracking import Progress, no_progress
from jaxrec.state_store.metadata import STORE_FILE, parse_metadata, read_json
from jaxrec.state_store.places import Url, open_root
from jaxrec.state_store.store import UserStateStore
from jaxrec.types import UserId

# How long a process waits for another one that is making the same store.
CREATE_TIMEOUT = 60.0


class RebuildResult(NamedTuple):
    """Counts of a `rebuild`.

    users: states written.
    already_built: users whom the new store had already.
    missing: users of the old store without a prepared history, not written (all their events
        were appended).
    shorter: users written from fewer events than their old state covers.

    The missing events of the last two came after the data was prepared: append them to the new
    store.
    """

    users: int
    already_built: int
    missing: int
    shorter: int


def rebuild(
    rec: Recommender,
    old: UserStateStore,
    store: UserStateStore,
    prepared: Prepared,
    progress: Progress = no_progress,
) -> RebuildResult:
    """Compresses every user of `old` anew, by another model, from prepared histories.

    old: a store of any model, open in any mode, not changed. store: the one of `rec`, open for
    writing. Users that were deleted from `old` stay forgotten, although the prepared data may
    still hold them (`build_states` would build them again). Every batch is durable when the next
    one starts, so the same call goes on where a killed one stopped; users of shards that `store`
    does not hold for writing are left to other processes. progress: over batches of users
    (how many at most). Raises DataError when the prepared data is not what the model was trained
    on, and StoreError when both are the same store or a row is damaged.
    """
    check_data(rec, prepared)
    if old.metadata.identity == store.metadata.identity:
        raise StoreError(f"{store}: old and new store are the same; rebuild into a new place")
    order = np.argsort(prepared.users, kind="stable")
    names = prepared.users[order]
    ends = sum(old.num_ranges(shard) for shard in range(old.num_shards))
    most = ends + sum(shard.users // BATCH for shard in old.stat())
    total = np.zeros(len(RebuildResult._fields), np.int64)
    for all_ids, columns in progress(old.iterate(BATCH), most):
        owned = store.owns(all_ids)
        if not owned.any():
            continue
        ids = [all_ids[i] for i in np.flatnonzero(owned)]
        _, already_built = store.read(ids)
        rows, prepared_users = _prepared_rows(ids, names, order)
        to_build = prepared_users & ~already_built
        users = rows[to_build]
        if len(users):
            write_histories(rec, store, prepared, users)
        fewer = prepared.lengths[rows] < columns["events"][owned]
        total += [
            len(users),
            already_built.sum(),
            (~prepared_users & ~already_built).sum(),
            (to_build & fewer).sum(),
        ]
    return RebuildResult(*total.tolist())


def _prepared_rows(
    ids: list[UserId], names: np.ndarray, order: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(rows of the prepared data [B], 0 of unknown users; known bool [B]).

    names: [U] prepared user ids, ascending; order: [U] their rows.
    """
    kind = str if names.dtype.kind == "U" else int
    right_kind = np.asarray([isinstance(user, kind) for user in ids], bool)
    keys = np.asarray([user if ok else kind() for user, ok in zip(ids, right_kind, strict=True)])
    place = np.minimum(np.searchsorted(names, keys), len(names) - 1)
    known = right_kind & (names[place] == keys)
    return np.where(known, order[place], 0), known


def identity(url: Url) -> str | None:
    """The name that the store at `url` got at its creation; None where there is none."""
    content, _ = read_json(open_root(url), STORE_FILE)
    if content is None:
        return None
    return parse_metadata(content, STORE_FILE).identity


class StoreSettings(TypedDict):
    """Settings of `Recommender.create_store`; None where its default is meant."""

    encoding: str | None
    keep_seen: int | None
    num_shards: int | None


def create_or_open(
    rec: Recommender,
    url: Url,
    *,
    encoding: str | None = None,
    keep_seen: int | None = None,
    num_shards: int | None = None,
    shards: Iterable[int] | None = None,
) -> UserStateStore:
    """The store at `url`, created when it is not there, open for writing `shards`.

    Several processes may start at the same time with shards of their own: one of them creates
    the store, the others wait for it. encoding, keep_seen, num_shards: None is the default of
    `Recommender.create_store`, and matches any existing store. Raises StoreError when the store
    exists with other settings.
    """
    settings: StoreSettings = {
        "encoding": encoding,
        "keep_seen": keep_seen,
        "num_shards": num_shards,
    }
    deadline = time.monotonic() + CREATE_TIMEOUT
    while identity(url) is None:
        try:
            return rec.create_store(url, shards=shards, **settings)
        except StoreError:
            # it may be there now: then another process was quicker
            if identity(url) is None and time.monotonic() > deadline:
                raise
            time.sleep(0.05)
    store = rec.open_store(url, shards=shards)
    existing = settings_of(store)
    differences = [
        f"{name}: store {existing[name]}, given {value}"
        for name, value in settings.items()
        if value is not None and value != existing[name]
    ]
    if differences:
        store.close()
        raise StoreError(
            f"{url}: there already is a store ({'; '.join(differences)}); choose another place"
        )
    return store


def settings_of(store: UserStateStore) -> dict[str, int | str]:
    """encoding, keep_seen and num_shards: what `create_store` was given."""
    return {
        "encoding": store.metadata.binding.encoding,
        "keep_seen": seen_capacity(store.spec),
        "num_shards": store.num_shards,
    }
