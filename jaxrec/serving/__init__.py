"""Serving: recommendations from persistent user states. Start with `Recommender.load`.

`Recommender` is imported on first use, because training needs only the catalog.
"""

from typing import TYPE_CHECKING

from jaxrec.data.catalog import Catalog

if TYPE_CHECKING:
    from jaxrec.serving.service import Recommender
    from jaxrec.serving.updates import AppendResult

__all__ = ["AppendResult", "Catalog", "Recommender"]


def __getattr__(name: str) -> object:
    if name == "Recommender":
        from jaxrec.serving.service import Recommender

        return Recommender
    if name == "AppendResult":
        from jaxrec.serving.updates import AppendResult

        return AppendResult
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
