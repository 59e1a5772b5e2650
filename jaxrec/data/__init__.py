"""Raw interactions in, batches of histories out: `prepare`, then `jaxrec.data.pipeline`."""

from jaxrec.data.prepared import Prepared, prepare
from jaxrec.data.schema import DataError

__all__ = ["DataError", "Prepared", "prepare"]
