"""Recipes that leave the model to the data: keys that nobody sets are chosen for it.

A recipe with `ADVISED = True` (configs/table.py) returns settings that suit any data. Once the
command line is read, so that data.* keys are known, the data is prepared and described, and
`jaxrec.data.advice` replaces them where it knows better:

1. A key that the command line gives stays, and so does every key of data.*.
2. A run that was started keeps what it was started with: its config.json decides, not a later
   description. So the same command continues it, after later files were appended too.

Describing takes one pass over the events, at the first start of a run alone.
"""

import pathlib
from collections.abc import Collection
from typing import Literal, TypeAlias

from jaxrec.config import Config, lookup, validate
from jaxrec.data import advice, description
from jaxrec.data.preparation import prepare
from jaxrec.runtime import workdir
from jaxrec.runtime.progress import say

Source: TypeAlias = Literal["data", "run"]


def fill(
    config: Config,
    given: Collection[str],
    folder: pathlib.Path,
    *,
    source: Source = "data",
    started: Config | None = None,
) -> None:
    """Sets the keys of `config` that are not `given` to what the data, or the run, asks for.

    given: dotted keys of the command line. folder: of the run. source: "data" describes it where no
    run was started; "run" leaves `config` as it is then. started: the configuration that decides;
    default: that of the run in `folder`. Raises ConfigError, DataError, WorkdirError.
    """
    if started is None and (folder / workdir.CONFIG).is_file():
        started = workdir.load_config(folder)
    if started is not None:
        chosen, keys = started, [key for key in advice.KEYS if key not in given]
    elif source == "run":
        return
    else:
        prepared = prepare(config.data, folder / "data")
        fixed = advice.values(config, given)
        advised = advice.advise(description.describe(prepared), fixed)
        chosen, taken, refused = advised.applied(config, given)
        keys = [choice.key for choice in taken]
        for line in (*advised.notes, *refused):
            say(f"advice: {line}")
    changed = [key for key in keys if lookup(config, key) != lookup(chosen, key)]
    for key in changed:
        advice.put(config, key, lookup(chosen, key))
    validate(config)
    if changed and started is None:
        settings = ", ".join(f"{key}={lookup(config, key)}" for key in changed)
        say(f"chosen for this data (`jaxrec describe` says why): {settings}")
