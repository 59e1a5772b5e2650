"""Whether a training reached its plateau, from the validations that it logged."""

import pathlib

from jaxrec.config import Config
from jaxrec.runtime import workdir
from jaxrec.runtime.metrics_writer import VALIDATION, read_metrics

FEWEST = 4  # validations that can show a plateau
LATE = 0.75  # share of the validations that the last ones are compared with
GROWTH = 0.05  # of the best so far in the last quarter: less is a plateau


def unfinished(folder: pathlib.Path, config: Config) -> bool:
    """Whether `train.metric` was still growing when the steps of a run were used up.

    folder, config: of a finished run. A run that stopped early, because `train.patience`
    validations brought nothing better, is at its plateau. Else the best of all validations must be
    less than 5 % above the best of the first three quarters, of four validations at least.
    """
    name = f"{VALIDATION}{config.train.metric}"
    rows = [row for row in read_metrics(folder / workdir.METRICS) if name in row]
    values = [float(row[name]) for row in sorted(rows, key=lambda row: int(row["step"]))]
    if rows and max(int(row["step"]) for row in rows) < config.train.steps:
        return False
    return grows(values)


def grows(values: list[float]) -> bool:
    """Whether a series of validations has no plateau yet.

    >>> grows([0.10, 0.15, 0.16, 0.161]), grows([0.10, 0.15, 0.16, 0.18]), grows([0.1, 0.1])
    (False, True, True)
    """
    if len(values) < FEWEST:
        return True
    early = max(values[: int(LATE * len(values))])
    return not max(values) <= (1 + GROWTH) * early
