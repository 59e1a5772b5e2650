"""Weights of other programs in this project's terms."""
