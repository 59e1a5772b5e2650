"""One writer per shard, and one creator of a store, on local disks.

An advisory `flock` on an open file: it ends with the process, however the process ends, so no
stale lock is left. A second store object in the same process is refused too.
"""

import contextlib
import fcntl
import os
import socket

from jaxrec.errors import StoreError

LOCK_FILE = "writer.lock"


class WriterLock:
    """The lock of one directory, held from construction to `release`.

    Raises StoreError naming the holder when another writer has it.
    """

    def __init__(self, directory: str, what: str = "the shard is open for writing") -> None:
        path = os.path.join(directory, LOCK_FILE)
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        except OSError as error:
            raise StoreError(f"{path}: cannot be opened for writing: {error}") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.read(self._file, 200).decode(errors="replace").partition("\n")[0]
            os.close(self._file)
            raise StoreError(
                f"{path}: {what} by {holder or 'another process'}; "
                "close that store, or open this one with other shards"
            ) from error
        except OSError as error:
            os.close(self._file)
            raise StoreError(f"{path}: the file system has no locks: {error}") from error
        # The name is only for messages: on a full disk deleting and compacting must still work.
        try:
            os.pwrite(self._file, f"{owner()}\n".encode(), 0)
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, 0)  # the name of an earlier holder would mislead

    def release(self) -> None:
        """Ends the lock."""
        os.close(self._file)


def owner() -> str:
    """How messages name this process."""
    return f"process {os.getpid()} on {socket.gethostname()}"
