"""The experiments of the compute-savings report: tables and plots from trained runs.

See `python -m jaxrec.experiments --help` and docs/experiments.md.
"""
