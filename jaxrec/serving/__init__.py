"""Serving: recommendations from persistent user states. Start with `Recommender.load`.

The recommender is imported when it is asked for: training needs the catalog alone.
"""

from typing import TYPE_CHECKING, Any

from jaxrec.data.catalog import Catalog

if TYPE_CHECKING:
    from jaxrec.serving.service import Appended, Recommender

__all__ = ["Appended", "Catalog", "Recommender"]


def __getattr__(name: str) -> Any:
    if name in ("Appended", "Recommender"):
        from jaxrec.serving import service

        return getattr(service, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
