"""All events of a prepared data set, in memory."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Histories:
    """All events, user after user, each user's in time order.

    offsets: int64 [U + 1], events of user u are [offsets[u], offsets[u + 1]).
    items: int32 [N], dense item ids 1..V.
    times: int32 [N], seconds since the time origin.
    users: int64 or str [U], raw user ids.
    returning: bool [N], planted returns (datasets.PLANTED only).
    """

    offsets: np.ndarray
    items: np.ndarray
    times: np.ndarray
    users: np.ndarray
    returning: np.ndarray | None = None

    def __len__(self) -> int:
        """U: users."""
        return len(self.users)

    @property
    def lengths(self) -> np.ndarray:
        """int64 [U], events per user."""
        return np.diff(self.offsets)

    def user(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Items and times of one user, oldest first."""
        events = slice(self.offsets[index], self.offsets[index + 1])
        return self.items[events], self.times[events]
