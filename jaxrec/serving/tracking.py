"""How long calls report progress."""

from collections.abc import Iterable
from typing import Protocol, TypeVar

T = TypeVar("T")


class Progress(Protocol):
    """Passes values on and shows how many of `total` have been taken."""

    def __call__(self, values: Iterable[T], total: int, /) -> Iterable[T]:
        """The same values, in the same order."""
        ...


def no_progress(values: Iterable[T], total: int, /) -> Iterable[T]:
    """A `Progress` that shows nothing."""
    del total
    return values
