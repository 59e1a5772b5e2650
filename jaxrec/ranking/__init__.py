"""Top lists and ranks of queries over the catalog: one interface for every kind of catalog.

An `ItemIndex` says where the items are (on one device, or rows split over `mesh.model`) and how
their vectors are computed (as stored, projected chunk by chunk, or hashed). `top_k`,
`top_k_of_candidates`, `rank_of_targets` and `scores` take any index.
"""

from jaxrec.ranking.index import ItemIndex
from jaxrec.ranking.search import TopK, rank_of_targets, scores, top_k, top_k_of_candidates

__all__ = ["ItemIndex", "TopK", "rank_of_targets", "scores", "top_k", "top_k_of_candidates"]
