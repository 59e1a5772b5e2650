"""Queries to the best items and to ranks: one interface for every kind of catalog.

An `ItemIndex` says where the items lie (one device, or rows split over `mesh.model`) and how
their vectors are made (as stored, projected chunk by chunk, or hashed). `top_k`,
`top_k_of_candidates`, `rank_of_targets` and `scores` take any of them.
"""

from jaxrec.ranking.index import ItemIndex
from jaxrec.ranking.search import rank_of_targets, scores, top_k, top_k_of_candidates

__all__ = ["ItemIndex", "rank_of_targets", "scores", "top_k", "top_k_of_candidates"]
