"""Batches of keys over several shards: consistent reads and atomic read-modify-write.

Knows keys and values; `store.py` turns them into users and rows.
"""

import random
import time
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import tensorstore as ts

from jaxrec.errors import StoreError
from jaxrec.state_store import database as db
from jaxrec.state_store.marks import Mark, status_bytes
from jaxrec.state_store.shard import READ_ATTEMPTS, STATE_KEY, Generation, Shard

# How long a write waits for a compaction or competing writers on an object store.
WRITE_TIMEOUT = 60.0

# (positions in the batch, their old values) -> new values, None deletes
Decide = Callable[[list[int], list[bytes | None]], Sequence[bytes | None]]
Futures = list["ts.Future[ts.KvStore.ReadResult]"]


class Job(NamedTuple):
    """The part of a batch that lies in one shard."""

    shard: Shard
    positions: list[int]
    keys: list[bytes]


class AccessError(StoreError):
    """A StoreError that knows the positions in the batch that it is about."""

    def __init__(self, message: str, positions: list[int]) -> None:
        super().__init__(message)
        self.positions = positions


def read(jobs: Iterable[Job], batch: int) -> list[bytes | None]:
    """The value of every key of the batch, None where there is none.

    Every value is whole and was current at some time during the call, also while another
    process writes or compacts. Raises AccessError when a file is damaged, truncated or lost.
    """
    values: list[bytes | None] = [None] * batch
    pending = list(jobs)
    for _ in range(READ_ATTEMPTS):
        used = [job.shard.current for job in pending]
        reads = [
            [generation.database.read(key) for key in job.keys]
            for job, generation in zip(pending, used, strict=True)
        ]
        failures = [_gather(job, r, values) for job, r in zip(pending, reads, strict=True)]
        # Read behind the rows: a generation that is there and not sealed now was current then.
        states = [generation.database.read(STATE_KEY) for generation in used]
        pending = [
            job
            for job, generation, state, failed in zip(pending, used, states, failures, strict=True)
            if not _was_current(job, generation, state, failed)
        ]
        if not pending:
            return values
    raise AccessError(
        f"{pending[0].shard.where}: the current generation changed {READ_ATTEMPTS} times while "
        "it was read; is something compacting in a loop?",
        [position for job in pending for position in job.positions],
    )


def _gather(job: Job, reads: Futures, values: list[bytes | None]) -> list[tuple[int, ValueError]]:
    """Puts what was read into `values`; returns (position, error) of what failed."""
    failed = []
    for position, future in zip(job.positions, reads, strict=True):
        try:
            result = future.result()
        except ValueError as error:
            failed.append((position, error))
            continue
        values[position] = result.value if result.state == "value" else None
    return failed


def _was_current(
    job: Job,
    used: Generation,
    future: "ts.Future[ts.KvStore.ReadResult]",
    failed: list[tuple[int, ValueError]],
) -> bool:
    """False when the pointer has moved; raises AccessError when it has not and reads failed."""
    shard = job.shard
    try:
        state = future.result()
        content = None if state.state == "missing" else shard.parse_status(state)
    except ValueError as error:
        failed, content = [*failed, (job.positions[0], error)], None
    if content is not None and content["sealed"] is None and not failed:
        return True
    if shard.refresh(used):
        return False
    if failed:
        (first, cause), positions = failed[0], sorted({position for position, _ in failed})
        key = job.keys[job.positions.index(first)]
        raise AccessError(shard.describe(used, key, cause), positions) from cause
    if content is None:
        shard.parse_status(state)  # raises: the database is lost
    return True


def transact(
    jobs: Iterable[Job], decide: Decide, read_first: bool, mark: Mark | None = None
) -> None:
    """Replaces the values of all keys; atomic per shard, durable on return.

    mark: shards that have this update already are left as they are, `decide` is not asked about
    them; the others get it together with the values.

    `decide` gets the positions of the shards that are tried and their old values (None where
    missing, or all None without `read_first`); after a conflict it is asked again about the
    positions that were not written. Raises AccessError with the positions that were not
    written when a shard fails; the others are durable.
    """
    pending = list(jobs)
    deadline = time.monotonic() + WRITE_TIMEOUT
    reason = ""
    while pending:
        try:
            open_jobs, again, reason = _begin(pending, decide, read_first, mark)
        except StoreError as error:  # nothing of this round was written
            unwritten = [position for job in pending for position in job.positions]
            raise AccessError(str(error), unwritten) from error
        failed: list[tuple[Job, Exception]] = []
        for job, commit in open_jobs:
            try:
                commit.result()
            except ValueError as error:
                if db.is_conflict(error):
                    again.append(job)
                    reason = "other writers kept changing the same users"
                else:
                    failed.append((job, error))
        if failed:
            lost = [position for job, _ in failed for position in job.positions]
            lost += [position for job in again for position in job.positions]
            job, cause = failed[0]
            raise AccessError(f"{job.shard.where}: not written: {cause}", lost) from cause
        if again and time.monotonic() > deadline:
            raise AccessError(
                f"{again[0].shard.where}: not written within {WRITE_TIMEOUT:.0f} s: {reason}",
                [position for job in again for position in job.positions],
            )
        if again:
            time.sleep(random.uniform(0.001, 0.02))
        pending = again


def _begin(
    jobs: list[Job], decide: Decide, read_first: bool, mark: Mark | None
) -> tuple[list[tuple[Job, "ts.Future[None]"]], list[Job], str]:
    """(shards whose commit has started, shards to try again, why)."""
    started = []
    for job in jobs:
        used = job.shard.current
        transaction = db.transaction()
        view = used.database.with_transaction(transaction)
        reads = [view.read(STATE_KEY)] + ([view.read(key) for key in job.keys] * read_first)
        started.append((job, used, transaction, view, reads))
    ready, again, reason = [], [], ""
    try:
        for job, used, transaction, view, reads in started:
            old = []
            try:
                state = reads[0].result()
                for future in reads[1:]:
                    old.append(future.result())
            except ValueError as error:
                if job.shard.refresh(used):
                    again.append(job)
                    continue
                key = job.keys[min(len(old), len(job.keys) - 1)]
                raise StoreError(job.shard.describe(used, key, error)) from error
            if state.state == "missing" and job.shard.refresh(used):
                again.append(job)
                continue
            status = job.shard.parse_status(state)
            seal = status["sealed"]
            if seal is not None and not job.shard.locked:
                job.shard.refresh(used)
                again.append(job)
                reason = f"a compaction by {seal['owner']} is not finished; run compact() to end it"
                continue
            if mark is not None and mark.done(status):
                transaction.abort()
                continue
            if mark is not None:
                view.write(STATE_KEY, status_bytes(mark.applied(status)))
            values = [r.value if r.state == "value" else None for r in old]
            ready.append((job, transaction, view, values or [None] * len(job.keys)))
        positions = [position for job, *_ in ready for position in job.positions]
        old_values = [value for *_, values in ready for value in values]
        new = iter(decide(positions, old_values) if positions else ())
        for job, _, view, _ in ready:
            for key in job.keys:
                view.write(key, next(new))
    except BaseException:
        for _, _, transaction, _, _ in started:
            transaction.abort()
        raise
    return [(job, transaction.commit_async()) for job, transaction, _, _ in ready], again, reason
