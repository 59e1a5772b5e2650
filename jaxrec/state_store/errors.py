"""The one error of the state store."""

from collections.abc import Sequence

UserId = int | str


class StoreError(RuntimeError):
    """A user-state store that cannot do what was asked; the message names file, shard or user.

    users: raw ids of the users that the failed call could not read or did not write (the
        others of a failed write are durable); empty when the error is about the whole store.
    """

    def __init__(self, message: str, users: Sequence[UserId] = ()) -> None:
        super().__init__(message)
        self.users = list(users)
