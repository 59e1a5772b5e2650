"""Serving: recommendations from persistent user states. Start with `Recommender.load`.

Names are imported on first use: training needs only the catalog, `--help` nothing.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxrec.data.catalog import Catalog
    from jaxrec.serving.service import Recommender
    from jaxrec.serving.updates import AppendResult

__all__ = ["AppendResult", "Catalog", "Recommender"]


def __getattr__(name: str) -> object:
    if name == "Catalog":
        from jaxrec.data.catalog import Catalog

        return Catalog
    if name == "Recommender":
        from jaxrec.serving.service import Recommender

        return Recommender
    if name == "AppendResult":
        from jaxrec.serving.updates import AppendResult

        return AppendResult
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
