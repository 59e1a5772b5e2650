"""Recommendations over HTTP from stored user states (extra `serve`)."""
