"""Orbax without the noise that it makes when it fails."""

import contextlib
import gc
import logging
import traceback
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quiet_orbax() -> Iterator[None]:
    """Silences Orbax, which logs every thread's traceback of an error that it raises as well.

    It also leaves coroutines that nobody awaits; they are dropped here, where Python's warning
    about them can be told from one about the caller's coroutines.
    """
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    except Exception as error:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
            cause: BaseException | None = error
            while cause is not None:
                traceback.clear_frames(cause.__traceback__)
                cause = cause.__cause__ or cause.__context__
            gc.collect()
        raise
    finally:
        logger.setLevel(level)
