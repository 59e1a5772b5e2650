"""The experiments of the compute-savings report: tables and plots from trained runs.

`python -m jaxrec.experiments --help` says how; docs/experiments.md what each one asks.
"""
