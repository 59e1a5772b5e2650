"""Batches of keys over several shards: consistent reads and atomic read-modify-write.

Knows keys and values; `store.py` turns them into users and rows.
"""

import random
import time
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, TypeAlias

import tensorstore as ts

from jaxrec.errors import StoreError
from jaxrec.state_store import database as db
from jaxrec.state_store.idempotency import IdempotencyKey
from jaxrec.state_store.shard import READ_ATTEMPTS, STATUS_KEY, Generation, Shard

# How long a write waits for a compaction or competing writers on an object store.
WRITE_TIMEOUT = 60.0

# (positions in the batch, their old values) -> new values, None deletes
Decide: TypeAlias = Callable[[list[int], list[bytes | None]], Sequence[bytes | None]]
ReadFuture: TypeAlias = "ts.Future[ts.KvStore.ReadResult]"


class Job(NamedTuple):
    """The part of a batch whose users are in one shard: positions in the batch, and their keys."""

    shard: Shard
    positions: list[int]
    keys: list[bytes]


class AccessError(StoreError):
    """A StoreError that knows the positions in the batch that it is about."""

    def __init__(self, message: str, positions: list[int]) -> None:
        super().__init__(message)
        self.positions = positions


def read(jobs: Iterable[Job], batch: int) -> list[bytes | None]:
    """The value of every key of the batch, None for missing keys.

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
        # Read after the rows: a generation that exists and is not sealed now was current then.
        statuses = [generation.database.read(STATUS_KEY) for generation in used]
        pending = [
            job
            for job, generation, status, failed in zip(
                pending, used, statuses, failures, strict=True
            )
            if not _was_current(job, generation, status, failed)
        ]
        if not pending:
            return values
    raise AccessError(
        f"{pending[0].shard.where}: the current generation changed {READ_ATTEMPTS} times while "
        "it was read; is something compacting in a loop?",
        _positions(pending),
    )


def _gather(
    job: Job, reads: list[ReadFuture], values: list[bytes | None]
) -> list[tuple[int, ValueError]]:
    """Stores the results in `values`; returns (position, error) of every failed read."""
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
    future: ReadFuture,
    failed: list[tuple[int, ValueError]],
) -> bool:
    """False when the pointer has moved; raises AccessError when it has not and reads failed."""
    shard = job.shard
    try:
        result = future.result()
        status = None if result.state == "missing" else shard.parse_status(result)
    except ValueError as error:
        failed, status = [*failed, (job.positions[0], error)], None
    if status is not None and status.seal is None and not failed:
        return True
    if shard.refresh(used):
        return False
    if failed:
        (first, cause), positions = failed[0], sorted({position for position, _ in failed})
        key = job.keys[job.positions.index(first)]
        raise AccessError(shard.describe(used, key, cause), positions) from cause
    if status is None:
        shard.parse_status(result)  # raises: the database is lost
    return True


def transact(
    jobs: Iterable[Job],
    decide: Decide,
    *,
    read_first: bool,
    idempotency_key: IdempotencyKey | None = None,
) -> None:
    """Replaces the values of all keys; atomic per shard, durable on return.

    `decide` gets positions in the batch and their old values (None where missing, or all None
    without `read_first`). After a conflict it is called again for the positions that were not
    written.

    idempotency_key: shards that have applied this update already are left unchanged, without
    calling `decide`; the others record the key together with the values.

    Raises AccessError with the positions that were not written when a shard fails; the others are
    durable.
    """
    pending = list(jobs)
    deadline = time.monotonic() + WRITE_TIMEOUT
    while pending:
        try:
            attempt = _begin(pending, decide, read_first, idempotency_key)
        except StoreError as error:  # nothing of this attempt was written
            raise AccessError(str(error), _positions(pending)) from error
        retry, reason = attempt.retry, attempt.reason
        failed: list[tuple[Job, Exception]] = []
        for job, commit in attempt.commits:
            try:
                commit.result()
            except ValueError as error:
                if db.is_conflict(error):
                    retry.append(job)
                    reason = "other writers kept changing the same users"
                else:
                    failed.append((job, error))
        if failed:
            job, cause = failed[0]
            unwritten = _positions([job for job, _ in failed] + retry)
            raise AccessError(f"{job.shard.where}: not written: {cause}", unwritten) from cause
        if retry and time.monotonic() > deadline:
            raise AccessError(
                f"{retry[0].shard.where}: not written within {WRITE_TIMEOUT:.0f} s: {reason}",
                _positions(retry),
            )
        if retry:
            time.sleep(random.uniform(0.001, 0.02))
        pending = retry


def _positions(jobs: Iterable[Job]) -> list[int]:
    return [position for job in jobs for position in job.positions]


class _Attempt(NamedTuple):
    """One try of a write: commits that have started, jobs to try again and why."""

    commits: list[tuple[Job, "ts.Future[None]"]]
    retry: list[Job]
    reason: str


class _Started(NamedTuple):
    """A job whose transaction is open and whose reads are under way."""

    job: Job
    used: Generation
    transaction: ts.Transaction
    view: ts.KvStore
    status: ReadFuture
    old_values: list[ReadFuture]


def _start(job: Job, read_first: bool) -> _Started:
    used = job.shard.current
    transaction = db.transaction()
    view = used.database.with_transaction(transaction)
    status = view.read(STATUS_KEY)
    old_values = [view.read(key) for key in job.keys] if read_first else []
    return _Started(job, used, transaction, view, status, old_values)


def _begin(
    jobs: list[Job],
    decide: Decide,
    read_first: bool,
    idempotency_key: IdempotencyKey | None,
) -> _Attempt:
    """Reads every shard, calls `decide` and starts to commit."""
    started = [_start(job, read_first) for job in jobs]
    ready: list[tuple[_Started, list[bytes | None]]] = []
    retry: list[Job] = []
    reason = ""
    try:
        for entry in started:
            job, shard = entry.job, entry.job.shard
            results = _results(entry)
            if results is None:
                retry.append(job)
                continue
            status = shard.parse_status(results[0])
            if status.seal is not None and not shard.locked:
                shard.refresh(entry.used)
                retry.append(job)
                reason = (
                    f"a compaction by {status.seal.owner} is not finished; run compact() to end it"
                )
                continue
            if idempotency_key is not None:
                if idempotency_key.already_applied(status):
                    entry.transaction.abort()
                    continue
                entry.view.write(STATUS_KEY, idempotency_key.recorded(status).to_bytes())
            values = [r.value if r.state == "value" else None for r in results[1:]]
            ready.append((entry, values or [None] * len(job.keys)))
        positions = _positions(entry.job for entry, _ in ready)
        old_values = [value for _, values in ready for value in values]
        new_values = iter(decide(positions, old_values) if positions else ())
        for entry, _ in ready:
            for key in entry.job.keys:
                entry.view.write(key, next(new_values))
    except BaseException:
        for entry in started:
            entry.transaction.abort()
        raise
    commits = [(entry.job, entry.transaction.commit_async()) for entry, _ in ready]
    return _Attempt(commits, retry, reason)


def _results(entry: _Started) -> list[ts.KvStore.ReadResult] | None:
    """The status and the old values; None when another generation has become current.

    Raises StoreError naming the file that cannot be read.
    """
    job, results = entry.job, []
    try:
        for future in [entry.status, *entry.old_values]:
            results.append(future.result())
    except ValueError as error:
        if job.shard.refresh(entry.used):
            return None
        key = job.keys[min(max(len(results) - 1, 0), len(job.keys) - 1)]
        raise StoreError(job.shard.describe(entry.used, key, error)) from error
    if results[0].state == "missing" and job.shard.refresh(entry.used):
        return None
    return results
