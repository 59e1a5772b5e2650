"""What is known of a shard as a whole, and updates that it takes once however often they come.

The status is the value of the shard's state key (see shard.py): {"sealed": null or {target,
owner}, "applied": {source: place}}.
"""

import json
from typing import Any, NamedTuple

# So many sources of updates are remembered: the status has to fit into the tree's leaf.
SOURCES = 3


class Mark(NamedTuple):
    """Which update this is: one of a source's updates, which come in ascending places.

    source: short name of a content, such as a digest. place: numbers, compared in order.
    """

    source: str
    place: tuple[int, ...]

    def done(self, status: dict[str, Any]) -> bool:
        """Whether a shard of this status has the update already."""
        applied = status["applied"].get(self.source)
        return applied is not None and list(self.place) <= applied

    def applied(self, status: dict[str, Any]) -> dict[str, Any]:
        """The status of a shard that gets the update."""
        others = {k: v for k, v in status["applied"].items() if k != self.source}
        newest = dict(list(others.items())[1 - SOURCES :])
        return status | {"applied": newest | {self.source: list(self.place)}}


def parse_status(value: bytes) -> dict[str, Any]:
    """The status of a stored value; raises ValueError, KeyError, TypeError or AttributeError."""
    content = json.loads(value)
    return {"sealed": content["sealed"], "applied": dict(content.get("applied", {}))}


def status_bytes(status: dict[str, Any]) -> bytes:
    """The value of a state key."""
    return json.dumps(status, separators=(",", ":")).encode()
