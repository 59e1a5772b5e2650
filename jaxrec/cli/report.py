"""`jaxrec report`: see `jaxrec.evaluation.printing`, which has no need of this floor."""

from jaxrec.evaluation.printing import main

__all__ = ["main"]
