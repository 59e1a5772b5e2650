"""States of all users from prepared histories."""

from typing import NamedTuple

import numpy as np

from jaxrec.data.prepared import Prepared
from jaxrec.errors import DataError
from jaxrec.serving.buckets import BATCH
from jaxrec.serving.service import Recommender
from jaxrec.serving.state_rows import Events
from jaxrec.serving.tracking import Progress, no_progress
from jaxrec.state_store.store import UserStateStore


class BuildResult(NamedTuple):
    """Counts of a `build_states`.

    users: states written. already_built: users that had one and were left as they are.
    """

    users: int
    already_built: int


def build_states(
    rec: Recommender,
    store: UserStateStore,
    prepared: Prepared,
    progress: Progress = no_progress,
) -> BuildResult:
    """Compresses the history of every user that the store does not have.

    Every batch is durable when the next one starts, so the same call goes on where a killed
    one stopped. Only users of shards that the store holds for writing are built: several
    processes share the work by shards. progress: over batches of users. Raises DataError when
    the prepared data is not what the model was trained on.
    """
    check_data(rec, prepared)
    users = prepared.users.tolist()
    owned = np.flatnonzero(store.owns(users))
    # users of one batch need about the same work
    order = owned[np.argsort(prepared.lengths[owned], kind="stable")]
    batches = [order[start : start + BATCH] for start in range(0, len(order), BATCH)]
    written = 0
    for batch in progress(batches, len(batches)):
        _, known = store.read([users[user] for user in batch])
        missing = batch[~known]
        if len(missing):
            write_histories(rec, store, prepared, missing)
        written += len(missing)
    return BuildResult(written, len(order) - written)


def write_histories(
    rec: Recommender, store: UserStateStore, prepared: Prepared, users: np.ndarray
) -> None:
    """Writes the states of users without one; users: numbers int [B] in the prepared data."""
    records = prepared.source.__getitems__(users.tolist())
    names = [user.item() for user in prepared.users[users]]
    rec.append_dense(store, names, [Events(record.items, record.times) for record in records])


def check_data(rec: Recommender, prepared: Prepared) -> None:
    """Raises DataError unless items and times of the prepared data are the model's."""
    ids, known = prepared.vocabulary.ids, rec.catalog.vocabulary.ids
    if not np.array_equal(ids, known) or prepared.time_origin != rec.catalog.time_origin:
        raise DataError(
            f"{prepared.folder}: {len(ids)} items, times from {prepared.time_origin}: the model "
            f"was trained on other data ({len(known)} items, times from "
            f"{rec.catalog.time_origin}). Set --cache-dir to the data of its run"
        )
