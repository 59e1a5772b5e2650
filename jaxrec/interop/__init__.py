"""Weights of other programs, converted to and from this project's parameters."""
