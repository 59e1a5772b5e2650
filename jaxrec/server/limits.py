"""What the service accepts, and the few sizes of programs that follow from it."""

import dataclasses

from jaxrec.errors import ConfigError
from jaxrec.serving import buckets
from jaxrec.serving.buckets import Shapes

SHORT_LIST, SHORT_IDS = buckets.LISTS[0], buckets.IDS[1]
BODY_BYTES = 4 << 20


@dataclasses.dataclass(frozen=True)
class Limits:
    """Bounds of requests and of waiting. Raises ConfigError naming the flag.

    max_batch: users of one call to the model, and of one request.
    max_wait_ms: how long the first request of a batch waits for others.
    queue: requests, and appends, that may wait; more are refused with status 429.
    timeout: seconds until a waiting request is answered with status 504.
    max_k: items of a list. max_ids: excluded items, or candidates, of a user.
    max_events: events of one append.
    """

    max_batch: int = 64
    max_wait_ms: float = 2.0
    queue: int = 1024
    timeout: float = 10.0
    max_k: int = 100
    max_ids: int = 1000
    max_events: int = 1000

    def __post_init__(self) -> None:
        for name, least, most in (
            ("max_batch", 1, buckets.BATCH),
            ("max_wait_ms", 0, 1000),
            ("queue", 1, 10**6),
            ("timeout", 0.01, 3600),
            ("max_k", 1, 10**5),
            ("max_ids", 1, 10**5),
            ("max_events", 1, 10**5),
        ):
            value = getattr(self, name)
            if not least <= value <= most:
                flag = name.replace("_", "-")
                raise ConfigError(f"--{flag}={value}: a number from {least} to {most} is needed")

    def shapes(self, keep_seen: int) -> Shapes:
        """Sizes of programs. keep_seen: items that the store remembers of a user."""
        return Shapes(
            users=_up_to(buckets.USERS, self.max_batch),
            events=_up_to(buckets.EVENTS[:1], self.max_events),
            lists=_up_to((SHORT_LIST,), self.max_k),
            ids=_up_to((SHORT_IDS,), self.max_ids + keep_seen),
        )


def _up_to(sizes: tuple[int, ...], largest: int) -> tuple[int, ...]:
    return (*(size for size in sizes if size < largest), largest)
