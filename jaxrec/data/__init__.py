"""Raw interactions in, batches of histories out: `prepare`, then `jaxrec.data.pipeline`."""

from jaxrec.data.preparation import prepare
from jaxrec.data.prepared import Prepared
from jaxrec.errors import DataError

__all__ = ["DataError", "Prepared", "prepare"]
