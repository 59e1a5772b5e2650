"""Idempotency keys of updates, and the status of a shard that remembers them.

The status is the value of a shard's status key (see shard.py), as JSON:
`{"sealed": null or {"target", "owner"}, "applied": {source: position}}`. A source is remembered
until newer ones push it out.
"""

import json
from typing import NamedTuple

# Sources of updates that a shard remembers: the status has to fit into the tree's leaf.
SOURCES = 3


class Seal(NamedTuple):
    """An unfinished compaction: the generation it fills and the process that runs it."""

    target: str
    owner: str


class ShardStatus(NamedTuple):
    """The status of a shard.

    seal: the compaction that keeps other writers out, None when there is none.
    applied: the last position that each source has applied, oldest source first.
    """

    seal: Seal | None
    applied: dict[str, tuple[int, ...]]

    @classmethod
    def from_bytes(cls, value: bytes) -> "ShardStatus":
        """The inverse of `to_bytes`.

        Raises ValueError, KeyError, TypeError or AttributeError when the value is damaged.
        """
        content = json.loads(value)
        seal = None if content["sealed"] is None else Seal(**content["sealed"])
        positions = content.get("applied", {}).items()
        return cls(seal, {source: tuple(position) for source, position in positions})

    def to_bytes(self) -> bytes:
        """The stored value."""
        content = {
            "sealed": None if self.seal is None else self.seal._asdict(),
            "applied": self.applied,
        }
        return json.dumps(content, separators=(",", ":")).encode()


class IdempotencyKey(NamedTuple):
    """Names one of a source's updates, so that a shard applies it once.

    source: short name of the updates' content, such as a digest.
    position: numbers, compared in order; the updates of a source come in ascending positions.

    >>> empty = ShardStatus(seal=None, applied={})
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
