"""A run's folder: who owns it, and what may change between two starts of one run.

config.json       the configuration of the run
dataset.json      digests of its data and vocabulary
catalog.npz       raw item ids, popularity and time origin (`jaxrec.data.catalog`)
environment.json  versions, devices and git revision of every start
metrics.jsonl     one line per logged step
checkpoints/      see `jaxrec.runtime.checkpoint`
"""

import contextlib
import dataclasses
import fcntl
import fnmatch
import json
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from jaxrec import config as config_lib
from jaxrec.config import Config
from jaxrec.errors import WorkdirError

CHECKPOINTS = "checkpoints"
METRICS = "metrics.jsonl"

# What a run may change and still be the same run: how long, how often, where and on what.
FREE = (
    "train.steps",
    "train.log_every",
    "train.eval_every",
    "train.checkpoint_every",
    "train.keep",
    "train.patience",
    "train.compilation_cache",
    "train.continue_on_new_data",
    "train.dry_run",
    "train.profile_steps",
    "eval.*",
    "mesh.*",
    "serving.*",
    "model.texts.cache_dir",
    "model.texts.rows",
    "data.cache_dir",
    "data.path",  # a moved file; its content is in the data digest
    "data.items_path",
    "data.workers",
    "data.worker_processes",
)


class Ancestor(NamedTuple):
    """Data that the present one was appended to: its digests (as in dataset.json), its items."""

    digests: Mapping[str, str]
    items: int


class Claim(NamedTuple):
    """changed: free keys that changed, in words. grown: the run's data was appended to since;
    the folder still says the old one until `adopt`."""

    changed: list[str]
    grown: bool = False


@contextlib.contextmanager
def lock(folder: pathlib.Path) -> Iterator[None]:
    """Holds the folder for one training process; a killed process lets go of it.

    Raises WorkdirError when another process trains there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise WorkdirError(
                f"workdir {folder} is in use by another training process: wait for it, stop it, "
                "or name another --workdir"
            ) from error
        yield


def claim(
    folder: pathlib.Path,
    config: Config,
    digests: Mapping[str, str],
    ancestors: Sequence[Ancestor] = (),
) -> Claim:
    """Makes `folder` this run's, or checks that it is.

    digests: what of the data must stay the same (data, vocabulary). ancestors: what this data
    was appended to; a run of one of them is continued with train.continue_on_new_data. Raises
    WorkdirError when the folder belongs to another configuration or data set, naming what differs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config_file, data_file = folder / "config.json", folder / "dataset.json"
    if not config_file.exists():
        strangers = [name for name in (CHECKPOINTS, METRICS) if (folder / name).exists()]
        if strangers:
            raise WorkdirError(
                f"workdir {folder} has {' and '.join(strangers)} but no config.json: it cannot "
                "be told whose they are; name another --workdir"
            )
        write_text(data_file, json.dumps(dict(digests), indent=2, sort_keys=True))
        write_text(config_file, config_lib.to_json(config))
        return Claim([])
    # a key that came after the run was started had its default then
    stored = flatten(Config()) | _read(config_file)
    known = _read(data_file) if data_file.exists() else {}
    grown = known != dict(digests) and any(known == dict(a.digests) for a in ancestors)
    here = flatten(config)
    lines = _differences(stored, here)
    free = ("data.append",) if grown else ()
    barred = [line for key, line in lines.items() if not is_free(key) and key not in free]
    if barred:
        raise WorkdirError(
            f"workdir {folder} belongs to another configuration "
            f"({_essence(stored)} there, {_essence(here)} here): {'; '.join(barred)}. "
            "Name another --workdir, or give the old values"
        )
    if grown and not config.train.continue_on_new_data:
        raise WorkdirError(
            f"workdir {folder} was trained on this data before data.append="
            f"{list(config.data.append)} was added: --config.train.continue_on_new_data=True goes "
            "on with it and gives the new items rows; or name another --workdir"
        )
    for name, value in digests.items():
        if known.get(name) != value and not grown:
            raise WorkdirError(
                f"workdir {folder} belongs to another dataset: its {name} digest is "
                f"{known.get(name)}, that of this data is {value}. Name another --workdir, or "
                f"give the data it was trained on{_advice(config)}"
            )
    if lines and not grown:
        write_text(config_file, config_lib.to_json(config))
    return Claim(list(lines.values()), grown)


def check(folder: pathlib.Path, config: Config) -> None:
    """Checks that `folder` holds a run whose model this configuration describes.

    Keys that decide neither data nor model nor what is asked of it (`train.*` and `FREE`) may
    differ. Raises WorkdirError naming those that must not.
    """
    load_config(folder)
    lines = _differences(flatten(Config()) | _read(folder / "config.json"), flatten(config))
    barred = [line for key, line in lines.items() if not is_free(key) and key[:6] != "train."]
    if barred:
        raise WorkdirError(
            f"workdir {folder} holds a run of another configuration: {'; '.join(barred)}. Give the "
            "values it was trained with, or name the folder of the run that you mean"
        )


def check_data(folder: pathlib.Path, digests: Mapping[str, str]) -> None:
    """Checks that a run was trained on this data and split. Raises WorkdirError otherwise."""
    file = folder / "dataset.json"
    known = _read(file) if file.exists() else {}
    for name, value in digests.items():
        if known.get(name) != value:
            raise WorkdirError(
                f"workdir {folder} was trained on another dataset: its {name} digest is "
                f"{known.get(name)}, that of this data is {value}. Give the data and the split "
                "that it was trained on: what is held out here may have been trained on there"
            )


def adopt(folder: pathlib.Path, config: Config, digests: Mapping[str, str]) -> None:
    """Makes a run of data before `ancestors`' later files one of this data (see `Claim.grown`)."""
    # in this order: a process killed in between finds its run still grown, and comes here again
    write_text(folder / "config.json", config_lib.to_json(config))
    write_text(folder / "dataset.json", json.dumps(dict(digests), indent=2, sort_keys=True))


def _advice(config: Config) -> str:
    if not config.train.continue_on_new_data:
        return ""
    return (
        ". train.continue_on_new_data goes on with the run's own data and later files behind it: "
        "leave data.path as it was and name the later files in data.append"
    )


def load_config(folder: pathlib.Path) -> Config:
    """The configuration of the run in `folder`. Raises WorkdirError when there is none."""
    file = folder / "config.json"
    if not file.is_file():
        raise WorkdirError(f"workdir {folder} has no config.json: train there first")
    _read(file)
    return config_lib.from_json(file.read_text())


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted key -> value of a config."""
    flat: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            flat |= flatten(value, f"{prefix}{field.name}.")
        else:
            flat[f"{prefix}{field.name}"] = value
    return flat


def is_free(key: str) -> bool:
    """Whether a run may change this key."""
    return any(fnmatch.fnmatchcase(key, pattern) for pattern in FREE)


def write_text(path: pathlib.Path, text: str) -> None:
    """Replaces a file as a whole: a killed process leaves the old or the new one."""
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _read(file: pathlib.Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text())
    except ValueError as error:
        raise WorkdirError(f"{file} is damaged ({error}): restore it or name another") from error
    return _flat_json(values)


def _flat_json(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= _flat_json(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _differences(stored: Mapping[str, Any], here: Mapping[str, Any]) -> dict[str, str]:
    """Key -> what differs, in words."""
    return {
        key: f"{key}={_show(stored, key)} there, {_show(here, key)} here"
        for key in sorted({*stored, *here})
        if _plain(stored.get(key)) != _plain(here.get(key)) or (key in stored) != (key in here)
    }


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _show(values: Mapping[str, Any], key: str) -> str:
    return repr(_plain(values[key])) if key in values else "missing"


def _essence(values: Mapping[str, Any]) -> str:
    """Digest of the keys that a run must keep."""
    return config_lib.digest({k: _plain(v) for k, v in values.items() if not is_free(k)})
