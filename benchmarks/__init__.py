"""Comparisons with other projects; nothing here is part of the package."""
