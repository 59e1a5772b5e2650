"""The record of a checkpoint: what was saved, with the digests that prove it is intact."""

import dataclasses
import hashlib
import json
import logging
import pathlib
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from jaxrec.errors import CheckpointError, StructureError
from jaxrec.runtime import workdir
from jaxrec.types import Json
from jaxrec.untrusted import json_objects
from jaxrec.untrusted.json_objects import check, get

FORMAT = 2  # of the parameters' names and of the record; raise it when either changes
RECORD = "record.json"
MAX_BYTES = 1 << 28  # of a record: some 200 bytes for each array and file
_SHOWN = 3  # damaged files that a message names

log = logging.getLogger(__name__)


class StoredLeaf(NamedTuple):
    """One array of a checkpoint; digest: BLAKE2 of its bytes (`leaves.digest`)."""

    shape: tuple[int, ...]
    dtype: str
    digest: str


class FileDigest(NamedTuple):
    """Length in bytes and BLAKE2 of a file."""

    size: int
    digest: str


@dataclasses.dataclass(frozen=True)
class Record:
    """What `save` wrote beside the arrays.

    step: optimizer steps done. best: step of the best checkpoint so far. leaves: `tree/leaf` ->
    what is stored. meta: JSON values of the caller. files: path below the checkpoint -> digest.
    run: identity of the run (`workdir.run_id`); empty: none.
    """

    step: int
    best: int | None
    leaves: Mapping[str, StoredLeaf]
    meta: Json
    files: Mapping[str, FileDigest]
    run: str = ""


def steps(folder: pathlib.Path) -> list[int]:
    """Committed checkpoints, oldest first (temporary folders are not among them)."""
    if not folder.is_dir():
        return []
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdecimal() and p.is_dir())


def best_step(folder: pathlib.Path) -> int | None:
    """Step of the best checkpoint according to the newest readable one; None where unknown.

    Raises StructureError for checkpoints of an earlier layout.
    """
    for step in reversed(steps(folder)):
        try:
            return read_record(folder, step).best
        except StructureError:
            raise
        except CheckpointError as error:
            log.warning("%s; trying the next older checkpoint", error)
    return None


def write_record(path: pathlib.Path, record: Record) -> None:
    """Adds the record to a checkpoint's folder `path`."""
    values = {"format": FORMAT, **dataclasses.asdict(record)}
    text = json.dumps({"digest": _json_digest(values), "record": values}, indent=1)
    workdir.write_text(path / RECORD, text)


def read_record(folder: pathlib.Path, step: int) -> Record:
    """The record of checkpoint `step`.

    Raises CheckpointError when it is not intact, StructureError when it has another format or is
    one of another run.
    """
    file = folder / str(step) / RECORD

    def corrupt(text: str) -> CheckpointError:
        return CheckpointError(f"checkpoint {step} in {folder} is corrupt: {text}")

    content = json_objects.read(file, corrupt, max_bytes=MAX_BYTES)
    values = get(content, "record", dict, file.name, corrupt)
    if _json_digest(values) != content.get("digest") or values.get("step") != step:
        raise corrupt(f"{file.name} is not what was saved")
    written = get(values, "format", int, file.name, corrupt, 0)
    if written != FORMAT:
        age = "an earlier" if written < FORMAT else "a later"
        raise StructureError(
            f"checkpoint {step} in {folder} was written by {age} layout of jaxrec; train again in "
            f"another folder (or use the revision that wrote it). Its format is {written}, this "
            f"revision reads {FORMAT}"
        )
    run, here = values.get("run", ""), workdir.run_id(folder.parent)
    if run != here:
        raise StructureError(
            f"checkpoint {step} in {folder} belongs to run {run or 'without an identity'}, the "
            f"folder to run {here or 'without an identity'}: move it to the folder that it came "
            f"from (with its {workdir.RUN})"
        )
    best = values.get("best")
    return Record(
        run=run,
        step=step,
        best=None if best is None else check(best, int, f"{file.name}: best", corrupt),
        leaves={
            name: _leaf(leaf, file.name, corrupt)
            for name, leaf in get(values, "leaves", dict, file.name, corrupt).items()
        },
        meta=get(values, "meta", dict, file.name, corrupt),
        files={
            json_objects.inside(name, file.name, corrupt): _file(entry, file.name, corrupt)
            for name, entry in get(values, "files", dict, file.name, corrupt).items()
        },
    )


def _leaf(value: object, where: str, refuse: json_objects.Refuse) -> StoredLeaf:
    shape, dtype, digest = _several(value, (list, str, str), where, refuse)
    return StoredLeaf(
        tuple(check(n, int, f"{where}: a shape", refuse) for n in shape), dtype, digest
    )


def _file(value: object, where: str, refuse: json_objects.Refuse) -> FileDigest:
    return FileDigest(*_several(value, (int, str), where, refuse))


def _several(
    value: object, kinds: tuple[type, ...], where: str, refuse: json_objects.Refuse
) -> list[Any]:
    values = check(value, list, f"{where}: an entry", refuse)
    if len(values) != len(kinds):
        raise refuse(f"{where}: an entry has {len(values)} values, {len(kinds)} are needed")
    return [check(x, k, f"{where}: an entry", refuse) for x, k in zip(values, kinds, strict=True)]


def check_files(folder: pathlib.Path, record: Record, trees: Collection[str]) -> None:
    """Raises CheckpointError unless the files of `trees` are what was saved."""
    root, problems = folder / str(record.step), []
    for name, saved in record.files.items():
        tree, _, below = name.partition("/")
        if below and tree not in trees:
            continue
        try:
            actual = file_digest(root / name)
        except OSError as error:
            problems.append(f"{name}: {error.strerror or error}")
            continue
        if actual.size != saved.size:
            problems.append(f"{name} has {actual.size} bytes, {saved.size} were saved")
        elif actual.digest != saved.digest:
            problems.append(f"{name} has digest {actual.digest}, {saved.digest} was saved")
    if problems:
        hidden = len(problems) - _SHOWN
        more = f" and {hidden} more files" if hidden > 0 else ""
        raise CheckpointError(
            f"checkpoint {record.step} in {folder} is corrupt: {'; '.join(problems[:_SHOWN])}{more}"
        )


def file_digest(path: pathlib.Path) -> FileDigest:
    """Size and BLAKE2 of a file."""
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16))
        return FileDigest(file.tell(), digest.hexdigest())


def first_line(error: BaseException) -> str:
    """The first line of an error's message, cut to 300 characters."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:300]


def _json_digest(value: Json) -> str:
    text = json.dumps(value, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
