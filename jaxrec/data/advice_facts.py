"""What the rules of advice look at, and what they return."""

from collections.abc import Mapping
from typing import NamedTuple

from jaxrec.types import Json

REPEATING, NEVER = 0.05, 0.01  # share of events whose item the user had before
COARSE, ALIKE, TIED = 3600, 0.9, 0.5  # s, share of equal gaps, share of ties: times say little


class Choice(NamedTuple):
    """A value for a dotted key of the configuration, and why, in one line."""

    key: str
    value: object
    reason: str


class Facts(NamedTuple):
    """What the rules look at.

    quantiles: of events per user. tied, repeated: shares of events. test_users: users with a test
    target. repeat_events, repeat_seconds: quantiles of the gap between two events of one item.
    """

    users: int
    items: int
    train_events: int
    mean_events: float
    quantiles: Mapping[str, int]
    tied: float
    repeated: float
    days: float
    time_step: int
    common_gap_share: float
    gap_seconds: Mapping[str, int]
    repeat_events: Mapping[str, int]
    repeat_seconds: Mapping[str, int]
    rare_items: int
    test_users: int

    @classmethod
    def of(cls, statistics: Json) -> "Facts":
        """The facts in what `description.describe` returns."""
        return cls(
            users=statistics["users"],
            items=statistics["items"],
            train_events=statistics["train_events"],
            mean_events=statistics["mean_events"],
            quantiles=statistics["events_quantiles"],
            tied=statistics["tie_share"],
            repeated=statistics["repeat_share"],
            days=statistics["days"],
            time_step=statistics["time_step"],
            common_gap_share=statistics["common_gap_share"] or 0.0,
            gap_seconds=statistics["gap_seconds"],
            repeat_events=statistics["repeat_gap_events"],
            repeat_seconds=statistics["repeat_gap_seconds"],
            rare_items=statistics["items_below_events"]["5"],
            test_users=statistics["test_users"],
        )

    @property
    def times_tell(self) -> bool:
        """Whether the time between two events says something about them."""
        coarse = self.time_step == 0 or self.time_step > COARSE
        alike = self.common_gap_share > ALIKE
        return not coarse and not alike and self.tied <= TIED and self.days >= 1

    @property
    def counted(self) -> bool:
        """Whether history items should be counted in scores."""
        return self.repeated >= REPEATING
