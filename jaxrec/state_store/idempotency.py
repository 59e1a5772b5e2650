"""Idempotency keys of updates, and the status of a shard that remembers them.

The status is the value of a shard's status key (see shard.py), as JSON:
`{"store", "shard", "sealed": null or {"target", "owner"}, "applied": {source: position}}`. A source
is remembered until newer ones push it out.
"""

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

# Sources of updates that a shard remembers: the status has to fit into the tree's leaf.
SOURCES = 3


class Seal(NamedTuple):
    """An unfinished compaction: the generation it fills and the process that runs it."""

    target: str
    owner: str


class ShardStatus(NamedTuple):
    """The status of a shard.

    store, shard: identity of the store, and which of its shards this is.
    seal: the compaction that keeps other writers out, None when there is none.
    applied: the last position that each source has applied, oldest source first.
    """

    store: str
    shard: int
    seal: Seal | None = None
    applied: Mapping[str, tuple[int, ...]] = MappingProxyType({})

    @classmethod
    def from_bytes(cls, value: bytes) -> "ShardStatus":
        """The inverse of `to_bytes`.

        Raises ValueError, KeyError, TypeError, AttributeError or RecursionError when the value is
        damaged.
        """
        content = json.loads(value)
        seal = None if content["sealed"] is None else Seal(**content["sealed"])
        positions = content.get("applied", {}).items()
        applied = {source: tuple(position) for source, position in positions}
        return cls(content["store"], content["shard"], seal, applied)

    def to_bytes(self) -> bytes:
        """The stored value."""
        content = {
            "store": self.store,
            "shard": self.shard,
            "sealed": None if self.seal is None else self.seal._asdict(),
            "applied": dict(self.applied),
        }
        return json.dumps(content, separators=(",", ":")).encode()


class IdempotencyKey(NamedTuple):
    """Names one of a source's updates, so that a shard applies it once.

    source: short name of the updates' content, such as a digest.
    position: numbers, compared in order; the updates of a source come in ascending positions.

    >>> empty = ShardStatus(store="5f0c", shard=0)
    >>> key = IdempotencyKey("events-of-today", (0,))
    >>> key.already_applied(empty)
    False
    >>> key.already_applied(key.recorded(empty))
    True
    """

    source: str
    position: tuple[int, ...]

    def already_applied(self, status: ShardStatus) -> bool:
        """Whether a shard with this status has applied the update."""
        last = status.applied.get(self.source)
        return last is not None and self.position <= last

    def recorded(self, status: ShardStatus) -> ShardStatus:
        """The status after the update; the oldest source may be forgotten."""
        others = {k: v for k, v in status.applied.items() if k != self.source}
        newest = dict(list(others.items())[1 - SOURCES :])
        return status._replace(applied=newest | {self.source: self.position})
