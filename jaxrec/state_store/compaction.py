"""Compaction of a shard: live rows are copied into a new generation of its database.

The pointer moves with one conditional write. While the copy runs, a seal in the old generation
keeps writers without a lock (object stores) out.
"""

from jaxrec.errors import StoreError
from jaxrec.state_store import database as db
from jaxrec.state_store.idempotency import Seal
from jaxrec.state_store.keys import row_damage
from jaxrec.state_store.lock import owner
from jaxrec.state_store.shard import Generation, Pointer, Shard, new_generation_name


def compact(shard: Shard, row_bytes: int, batch: int) -> None:
    """Copies the live users into a new generation and deletes the old one.

    The caller must be the shard's writer. row_bytes: bytes of a row; batch: users per transaction.
    Raises StoreError, with the old generation current and open for writing, when a row is
    damaged or the disk is full.
    """
    shard.refresh(shard.current)
    shard.collect_garbage()
    old = shard.current
    unfinished = shard.status().seal
    name = new_generation_name()
    shard.seal(old, Seal(target=name, owner=owner()))
    try:
        pointer, version = shard.pointer()
        new = shard.open_generation(name)
        shard.seal(new, None)
        _copy(shard, old, new, row_bytes, batch)
        # The target of an unfinished compaction is deleted only once it can no longer win.
        garbage = [old.name] + ([unfinished.target] if unfinished is not None else [])
        if pointer.generation != old.name or not shard.move_pointer(
            Pointer(name, garbage), version
        ):
            raise StoreError(f"{shard.where}: compacted by another process meanwhile")
    except BaseException:
        current = shard.pointer()[0].generation
        if current != name:
            shard.remove_generation(name)
        if current == old.name:
            shard.seal(old, None)
        raise
    shard.current = new
    shard.collect_garbage()


def _copy(shard: Shard, old: Generation, new: Generation, row_bytes: int, batch: int) -> None:
    source = old.database
    try:
        parts = db.num_ranges(db.statistics(source)[0])
        for part in range(parts):
            for keys in db.batches(db.list_range(source, part, parts), batch):
                db.commit(new.database, keys, _intact_values(shard, old, keys, row_bytes))
        if db.statistics(source)[0] != db.statistics(new.database)[0]:
            raise StoreError(f"{shard.where}: the copy lost users; compaction was given up")
    except ValueError as error:
        raise StoreError(f"{shard.where}: compaction failed: {error}") from error


def _intact_values(shard: Shard, old: Generation, keys: list[bytes], row_bytes: int) -> list[bytes]:
    """The values of keys; raises StoreError at the first that is damaged."""
    values = []
    for key, future in zip(keys, [old.database.read(key) for key in keys], strict=True):
        try:
            values.append(future.result().value)
            damage = row_damage(key, values[-1], row_bytes)
        except ValueError as error:
            raise StoreError(
                f"{shard.describe(old, key, error)}; compaction was given up: delete or "
                "rewrite the users that `damaged()` lists"
            ) from error
        if damage:
            raise StoreError(
                f"{shard.where}{old.name}/{db.locate(old.database, key)}: a row cannot be "
                f"copied ({damage}); compaction was given up: delete or rewrite the users "
                "that `damaged()` lists"
            )
    return values
