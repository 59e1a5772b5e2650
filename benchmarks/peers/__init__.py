"""Peers trained and ranked on the data, split and targets of jaxrec; see README.md here.

`exchange`, `ranking` and `watch` need NumPy alone: they are shared by the peers' environments
and ours.
"""
