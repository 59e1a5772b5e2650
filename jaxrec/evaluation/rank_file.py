"""The ranks of an evaluation on disk, so that runs can be compared user by user.

`ranks.npz` holds user (dense index), position and item of every target, int32 [P], the ranks of
every row, int32 [P], and what makes ranks comparable: data, split, candidates, filter.
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxrec.config import Config
from jaxrec.errors import WorkdirError
from jaxrec.evaluation.ranks import Ranks
from jaxrec.runtime import workdir
from jaxrec.types import Json
from jaxrec.untrusted import arrays, json_objects

NAME = "ranks.npz"
FACTS = "facts"
TARGETS = ("user", "position", "item")
_ROW = "rank:"  # before the name of a row


class RankFile(NamedTuple):
    """facts: see `facts`. ranks: row -> its ranks, targets by user and position, without lists."""

    facts: Json
    ranks: dict[str, Ranks]


def facts(config: Config, digests: Mapping[str, str], num_items: int) -> Json:
    """What two evaluations must share to be compared, by the name that a message gives it."""
    data = config.data
    return {
        "data.dataset": data.dataset,
        **{f"digest of {name}": value for name, value in digests.items()},
        "data.split": data.split,
        "data.holdout": data.holdout,
        "eval.split": config.eval.split,
        "eval.filter_seen": config.eval.filter_seen,
        "candidates": num_items,
    }


def save(path: pathlib.Path, ranks: Mapping[str, Ranks], facts: Json) -> None:
    """Replaces the file as a whole. Raises OSError, and ValueError for rows of other targets.

    Rows may have their targets in any order: each is sorted by its own users and positions.
    """
    columns: dict[str, np.ndarray] = {}
    for name, row in ranks.items():
        order = np.lexsort((row.position, row.user))
        for target in TARGETS:
            values = getattr(row, target)[order].astype(np.int32)
            if not np.array_equal(columns.setdefault(target, values), values):
                raise ValueError(f"row {name!r} has other targets than the rows before it")
        columns[f"{_ROW}{name}"] = row.rank[order].astype(np.int32)
    with workdir.replacing(path) as file:
        stored: dict[str, Any] = {FACTS: np.array(json.dumps(facts)), **columns}
        np.savez_compressed(file, **stored)


def load(folder: pathlib.Path) -> RankFile:
    """The ranks of the last evaluation of the run in `folder`.

    Raises WorkdirError for a folder without a run, a run that was not evaluated, a damaged file.
    """
    path = folder / NAME
    if not folder.is_dir():
        raise WorkdirError(f"{folder}: no such run; name the folder of a run")
    if not path.is_file():
        workdir.load_config(folder)
        raise WorkdirError(
            f"{folder} has no {NAME}: it was not evaluated, or by an earlier version; "
            f"jaxrec evaluate --workdir={folder} writes it"
        )

    def refuse(text: str) -> WorkdirError:
        return WorkdirError(f"{text}; jaxrec evaluate --workdir={folder} writes it again")

    columns = arrays.read_npz(path, refuse, FACTS, *TARGETS)
    found = json_objects.parse(str(columns.pop(FACTS)), str(path), refuse)
    shapes = {(column.shape, str(column.dtype)) for column in columns.values()}
    if len(shapes) > 1 or len(columns) == len(TARGETS) or columns[TARGETS[0]].ndim != 1:
        raise refuse(f"{path}: damaged: not ranks of the same targets")
    if columns[TARGETS[0]].dtype != np.int32:
        raise refuse(f"{path}: damaged: ranks are not of type int32")
    user, position, item = (columns.pop(name) for name in TARGETS)
    rows = {
        name.removeprefix(_ROW): Ranks(user, position, item, rank, None)
        for name, rank in columns.items()
    }
    return RankFile(found, rows)
