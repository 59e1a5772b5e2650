"""A run's folder: its owner, and what may change between two starts of one run.

config.json       the configuration of the run
run.json          its identity, which its checkpoints carry
dataset.json      digests of its data and vocabulary
catalog.npz       raw item ids, popularity and time origin (`jaxrec.data.catalog`)
environment.json  versions, devices and git revision of every start
metrics.jsonl     one line per logged step
loggers.json      ids of the run at W&B and MLflow (`jaxrec.runtime.loggers`)
checkpoints/      see `jaxrec.runtime.checkpoint`
"""

import contextlib
import dataclasses
import fcntl
import fnmatch
import json
import os
import pathlib
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from jaxrec import config as config_lib
from jaxrec.config import Config
from jaxrec.errors import ConfigError, WorkdirError
from jaxrec.types import Json
from jaxrec.untrusted import json_objects

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

CONFIG = "config.json"
DATASET = "dataset.json"
RUN = "run.json"
CHECKPOINTS = "checkpoints"
METRICS = "metrics.jsonl"

# Keys that a run may change and still be the same run: how long, how often, where and on what.
FREE = (
    "train.steps",
    "train.log_every",
    "train.loggers",
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
    "data.prepare_workers",
    "data.prepare_memory",
)


class InUse(WorkdirError):
    """Another process trains in this folder."""


class Ancestor(NamedTuple):
    """A data set that the present one was appended to.

    digests: as in its dataset.json. items: how many it had.
    """

    digests: Mapping[str, str]
    items: int


class Claim(NamedTuple):
    """What differs from the last start of a run.

    changed: a line for each free key that changed. grown: the run's data was appended to since; the
    folder names the old data until `adopt`.
    """

    changed: list[str]
    grown: bool = False


@contextlib.contextmanager
def lock(folder: pathlib.Path) -> Iterator[None]:
    """Holds the folder for one training process; the lock ends with the process.

    Raises InUse when another process trains there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    except OSError as error:
        raise WorkdirError(f"{folder / '.lock'}: cannot be opened: {error}") from error
    with open(descriptor, "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InUse(
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

    digests: of the data and the vocabulary, which must stay the same. ancestors: data sets that
    this one was appended to; a run of one of them is continued with train.continue_on_new_data.
    Raises WorkdirError when the folder belongs to another configuration or data set, naming what
    differs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / CONFIG).exists():
        leftovers = [name for name in (CHECKPOINTS, METRICS) if (folder / name).exists()]
        if leftovers:
            raise WorkdirError(
                f"workdir {folder} has {' and '.join(leftovers)} but no config.json: the run "
                "that they belong to is unknown; name another --workdir"
            )
        write_text(folder / DATASET, _json(digests))
        write_text(folder / RUN, _json({"id": uuid.uuid4().hex}))
        write_text(folder / CONFIG, config_lib.to_json(config))
        return Claim([])
    stored, here, known = _stored(folder), flatten(config), _digests(folder)
    grown = known != dict(digests) and any(known == dict(a.digests) for a in ancestors)
    lines = _differences(stored, here)
    free = ("data.append",) if grown else ()
    refused = [line for key, line in lines.items() if not is_free(key) and key not in free]
    if refused:
        raise WorkdirError(
            f"workdir {folder} belongs to another configuration "
            f"({_digest_of_kept(stored)} there, {_digest_of_kept(here)} here): "
            f"{'; '.join(refused)}. Name another --workdir, or give the old values"
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
        write_text(folder / CONFIG, config_lib.to_json(config))
    return Claim(list(lines.values()), grown)


def check(folder: pathlib.Path, config: Config) -> None:
    """Checks that `folder` holds a run whose model this configuration describes.

    Keys that decide neither data nor model nor the task (`train.*` and `FREE`) may differ. Raises
    WorkdirError naming those that must not.
    """
    load_config(folder)
    lines = _differences(_stored(folder), flatten(config))
    refused = [
        line for key, line in lines.items() if not is_free(key) and not key.startswith("train.")
    ]
    if refused:
        raise WorkdirError(
            f"workdir {folder} holds a run of another configuration: {'; '.join(refused)}. Give "
            "the values it was trained with, or name the folder of the run that you mean"
        )


def check_data(folder: pathlib.Path, digests: Mapping[str, str]) -> None:
    """Checks that a run was trained on this data and split. Raises WorkdirError otherwise."""
    known = _digests(folder)
    for name, value in digests.items():
        if known.get(name) != value:
            raise WorkdirError(
                f"workdir {folder} was trained on another dataset: its {name} digest is "
                f"{known.get(name)}, that of this data is {value}. Give the data and the split "
                "that it was trained on: what is held out here may have been trained on there"
            )


def run_id(folder: pathlib.Path) -> str:
    """The identity of the run in `folder`; empty where it has none (a snapshot's model).

    Raises WorkdirError for a damaged file.
    """
    file = folder / RUN
    if not file.exists():
        return ""
    return json_objects.get(_read(file), "id", str, str(file), _damaged)


def check_vocabulary(folder: pathlib.Path, vocabulary: str) -> None:
    """Checks that a run's catalog has the vocabulary that the run was trained with.

    vocabulary: digest, as in dataset.json. A folder without that file (a snapshot's model) passes.
    Raises WorkdirError.
    """
    known = _digests(folder).get("vocabulary", vocabulary)
    if known != vocabulary:
        raise WorkdirError(
            f"workdir {folder}: the catalog's vocabulary has digest {vocabulary}, the run was "
            f"trained with {known}: it is another run's. Remove the catalog and start the training "
            "command of this run again: it writes the file before it goes on"
        )


def adopt(folder: pathlib.Path, config: Config, digests: Mapping[str, str]) -> None:
    """Makes a run of an ancestor of this data a run of this data (see `Claim.grown`)."""
    # in this order: a process killed in between finds its run still grown, and comes here again
    write_text(folder / CONFIG, config_lib.to_json(config))
    write_text(folder / DATASET, _json(digests))


def _advice(config: Config) -> str:
    if not config.train.continue_on_new_data:
        return ""
    return (
        ". train.continue_on_new_data goes on with the run's own data and later files behind it: "
        "leave data.path as it was and name the later files in data.append"
    )


def load_config(folder: pathlib.Path) -> Config:
    """The configuration of the run in `folder`.

    Raises WorkdirError for a folder without a run, for a damaged file and for a run of an earlier
    layout.
    """
    file = folder / CONFIG
    if not file.is_file():
        raise WorkdirError(f"workdir {folder} has no config.json: train there first")
    _stored(folder)
    content = json_objects.read_bytes(file, _damaged, max_bytes=json_objects.MAX_BYTES)
    try:
        config = config_lib.from_json(content.decode())
        config_lib.check_values(config)
        config_lib.check_elements(config)
    except (ConfigError, UnicodeDecodeError) as error:
        raise _damaged(f"{file}: {error}") from error
    return config


def flatten(config: "DataclassInstance", prefix: str = "") -> Json:
    """Dotted key -> value of a config."""
    flat: Json = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            flat |= flatten(value, f"{prefix}{field.name}.")
        else:
            flat[f"{prefix}{field.name}"] = value
    return flat


def is_free(key: str) -> bool:
    """Whether a run may change this key."""
    return any(fnmatch.fnmatchcase(key, pattern) for pattern in FREE)


def write_text(path: pathlib.Path, text: str) -> None:
    """Replaces a file as a whole: a killed process or a full disk leaves the old or the new one.

    The target of a link is replaced. Devices and pipes are written to.
    """
    path = pathlib.Path(os.path.realpath(path))
    if path.exists() and not path.is_file():
        path.write_text(text)
        return
    with replacing(path) as file:
        file.write(text.encode())


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[BinaryIO]:
    """A file to write bytes to that replaces `path` as a whole, on the disk, when the block ends.

    An error, in the block too, leaves the file that was there.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _stored(folder: pathlib.Path) -> Json:
    """Dotted key -> value of the run's configuration.

    Raises WorkdirError for keys that this revision does not have.
    """
    # a key that came after the run was started had its default then
    defaults, stored = flatten(Config()), _read(folder / CONFIG)
    unknown = sorted(set(stored) - set(defaults))
    if unknown:
        raise WorkdirError(
            f"workdir {folder} was written by an earlier layout of jaxrec (its {CONFIG} has "
            f"{', '.join(unknown[:3])}); train again in another --workdir (or use the revision "
            "that wrote it)"
        )
    return defaults | stored


def _digests(folder: pathlib.Path) -> Json:
    """Digests of the data that the run was trained on; empty when they are missing."""
    file = folder / DATASET
    return _read(file) if file.exists() else {}


def _read(file: pathlib.Path) -> Json:
    return _flat_json(json_objects.read(file, _damaged))


def _damaged(text: str) -> WorkdirError:
    return WorkdirError(f"{text}. Restore the file or name another --workdir")


def _json(digests: Mapping[str, str]) -> str:
    return json.dumps(dict(digests), indent=2, sort_keys=True)


def _flat_json(values: Json, prefix: str = "") -> Json:
    flat: Json = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= _flat_json(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _differences(stored: Json, here: Json) -> dict[str, str]:
    """Key -> a line with both values, of every key whose values differ."""
    return {
        key: f"{key}={_show(stored, key)} there, {_show(here, key)} here"
        for key in sorted({*stored, *here})
        if _plain(stored.get(key)) != _plain(here.get(key)) or (key in stored) != (key in here)
    }


def _plain(value: object) -> object:
    """As JSON reads it back: tuples are lists."""
    return list(value) if isinstance(value, tuple) else value


def _show(values: Json, key: str) -> str:
    return repr(_plain(values[key])) if key in values else "missing"


def _digest_of_kept(values: Json) -> str:
    """Digest of the keys that a run must keep."""
    return config_lib.digest({k: _plain(v) for k, v in values.items() if not is_free(k)})
