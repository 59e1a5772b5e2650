"""The record of a checkpoint: what was saved, with the digests that prove it is intact."""

import dataclasses
import hashlib
import json
import logging
import pathlib
from collections.abc import Collection, Mapping
from typing import NamedTuple

from jaxrec.errors import CheckpointError, StructureError
from jaxrec.runtime import workdir
from jaxrec.types import Json

FORMAT = 2  # of the parameters' names and of the record; raise it when either changes
RECORD = "record.json"
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
    try:
        content = json.loads(file.read_bytes())
        values, digest = content["record"], content["digest"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"checkpoint {step} in {folder} is corrupt: {file.name} cannot be read: "
            f"{first_line(error)}"
        ) from error
    if _json_digest(values) != digest or values["step"] != step:
        raise CheckpointError(
            f"checkpoint {step} in {folder} is corrupt: {file.name} is not what was saved"
        )
    written = values.get("format", 0)
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
    return Record(
        run=run,
        step=step,
        best=values["best"],
        leaves={
            name: StoredLeaf(tuple(shape), dtype, digest)
            for name, (shape, dtype, digest) in values["leaves"].items()
        },
        meta=values["meta"],
        files={name: FileDigest(*entry) for name, entry in values["files"].items()},
    )


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
