"""Errors whose message says what to change. Anything else that is raised is a bug.

Programs catch `JaxrecError`, print its one line and end with status 2.
"""

from collections.abc import Sequence


class JaxrecError(Exception):
    """Base of every error that a user can act on."""


class ConfigError(JaxrecError, ValueError):
    """A configuration value that cannot work: names the key, the value and the allowed values."""


class DataError(JaxrecError, ValueError):
    """Data that cannot be used: names file, column and row."""


class WeightsError(JaxrecError, ValueError):
    """A folder that cannot be read as a model: names the file, the problem and the remedy."""


class WorkdirError(JaxrecError, RuntimeError):
    """A folder that this run must not write to; names the folder and what differs."""


class CheckpointError(JaxrecError, RuntimeError):
    """A checkpoint that cannot be written, read or used; names step, folder and leaf."""


class StructureError(CheckpointError):
    """An intact checkpoint of another model or of an earlier layout: lists what differs."""


class NonFiniteError(JaxrecError, RuntimeError):
    """A loss or gradient that is not finite: names the step and the parameter or loss."""


class LoggerError(JaxrecError, RuntimeError):
    """A logger of `train.loggers` that cannot be used: names it and the remedy."""


class PeerError(JaxrecError, RuntimeError):
    """Another process of the run failed: names the process and the remedy."""


class StoreError(JaxrecError, RuntimeError):
    """A user-state store that cannot do what was requested; names the file, shard or user.

    users: raw ids of the users that the failed call could not read or did not write (the
        others of a failed write are durable); empty when the error is about the whole store.
    """

    def __init__(self, message: str, users: Sequence[int | str] = ()) -> None:
        super().__init__(message)
        self.users = list(users)
