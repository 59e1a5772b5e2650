"""Errors of writes that name what could not be written."""

import contextlib
import os
from collections.abc import Iterator

from jaxrec.errors import CheckpointError, StoreError


@contextlib.contextmanager
def as_store_errors(target: str | os.PathLike[str]) -> Iterator[None]:
    """Raises StoreError with the target when the block cannot write there.

    A full disk is an OSError without a name, or an error of TensorStore (ValueError) or Orbax.
    """
    try:
        yield
    except (StoreError, CheckpointError):
        raise
    except (OSError, ValueError, RuntimeError) as error:
        raise StoreError(f"{os.fspath(target)}: cannot be written: {error}") from error
