"""Checkpoints of a run: committed atomically, verified, restored onto any mesh.

`<folder>/<step>/` is one checkpoint. Orbax writes its arrays into `<step>.new`, `record.json`
is added and the folder renamed, so a killed process leaves either a whole checkpoint or a
folder that nothing reads. Orbax stores no checksum of its payload (a flipped bit would be a
silently wrong weight), so the record holds the BLAKE2 digest of every file, compared before
anything is read, and of every leaf, compared after.

A checkpoint holds named trees (`params`, `opt_state`, ...), each flattened to path -> array:
what is stored does not depend on the Python types of an optimizer's state.
"""

import contextlib
import errno
import gc
import hashlib
import json
import logging
import pathlib
import shutil
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from jaxrec.errors import CheckpointError, StructureError
from jaxrec.runtime import leaves, workdir

log = logging.getLogger(__name__)

FORMAT = 1
RECORD = "record.json"
_DELETING = ".deleting"
_CORRUPT = ".corrupt"
_NEW = ".new"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


Adapt = Callable[[Mapping[str, Any], Mapping[str, Any]], Mapping[str, Any]]


class Restored(NamedTuple):
    """step: optimizer steps done; trees: as asked for; meta: what `save` was given."""

    step: int
    trees: dict[str, Any]
    meta: dict[str, Any]


def steps(folder: pathlib.Path) -> list[int]:
    """Committed checkpoints, oldest first (temporary folders are not among them)."""
    if not folder.is_dir():
        return []
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdecimal() and p.is_dir())


def save(
    folder: pathlib.Path,
    step: int,
    trees: Mapping[str, Any],
    meta: Mapping[str, Any],
    best: int | None = None,
    replace: bool = False,
) -> None:
    """Writes checkpoint `step` and returns when it is committed.

    trees: name -> pytree of arrays. meta: JSON values (floats come back bit for bit). best:
    step of the best checkpoint so far, this one included. replace: a checkpoint of that step
    may exist; until the new one is complete it stays.
    Raises CheckpointError when it cannot be written (disk full); earlier ones stay intact.
    """
    final, new = folder / str(step), folder / f"{step}{_NEW}"
    if final.exists() and not replace:
        raise CheckpointError(f"checkpoint {step} in {folder} exists already")
    flat = {name: leaves.flatten(tree) for name, tree in trees.items()}
    table = {
        f"{name}/{path}": [list(x.shape), str(x.dtype), leaves.digest(x)]
        for name, tree in flat.items()
        for path, x in tree.items()
    }
    record = {"format": FORMAT, "step": step, "best": best, "leaves": table, "meta": dict(meta)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        clean(folder)
        with _quiet():
            ocp.save_checkpointables(new.absolute(), flat)
        if not jax.process_index():
            record["files"] = {
                str(path.relative_to(new)): _file_digest(path)
                for path in sorted(new.rglob("*"))
                if path.is_file()
            }
            text = json.dumps({"digest": _json_digest(record), "record": record}, indent=1)
            workdir.write_text(new / RECORD, text)
            if final.exists():
                _delete(final, lambda: new.rename(final))
            else:
                new.rename(final)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(f"checkpoint {step}")
    except Exception as error:
        clean(folder)
        raise CheckpointError(_save_failure(folder, step, error)) from error


def restore(
    folder: pathlib.Path, step: int, like: Mapping[str, Any], adapt: Adapt | None = None
) -> Restored:
    """Checkpoint `step`, verified.

    like: name -> tree of arrays or ShapeDtypeStructs whose shapes, dtypes and shardings the
    result has (no sharding: the first local device). Trees that are not named are not read.
    adapt: changes `like` by what is stored (`tree/leaf` -> (shape, dtype, ...)) before it is read.
    Raises CheckpointError: no such step, another structure (with a diff), corrupt (with the
    leaf).
    """
    if step not in steps(folder):
        raise CheckpointError(
            f"no checkpoint {step} in {folder}: there are {steps(folder) or 'none'}"
        )
    record = _record(folder, step)
    like = like if adapt is None else adapt(record["leaves"], like)
    wanted = {name: leaves.abstract(tree) for name, tree in like.items()}
    difference = leaves.difference(record["leaves"], wanted)
    if difference:
        raise StructureError(
            f"checkpoint {step} in {folder} is not one of this model (another configuration or "
            f"catalog?):\n  {difference}"
        )
    _check_files(folder, step, record["files"], tuple(like))
    try:
        with _quiet():
            flat = ocp.load_checkpointables((folder / str(step)).absolute(), wanted)
    except Exception as error:
        raise CheckpointError(
            f"checkpoint {step} in {folder} cannot be read: {_first_line(error)}"
        ) from error
    for name, keys in wanted.items():
        for key in keys:
            saved, found = record["leaves"][f"{name}/{key}"][2], leaves.digest(flat[name][key])
            if found != saved:
                raise CheckpointError(
                    f"checkpoint {step} in {folder} is corrupt: {name}/{key} is not what was "
                    f"saved (digest {found}, saved {saved})"
                )
    trees = {
        name: jax.tree.unflatten(jax.tree.structure(like[name]), [flat[name][k] for k in keys])
        for name, keys in wanted.items()
    }
    return Restored(step, trees, record["meta"])


def restore_latest(
    folder: pathlib.Path, like: Mapping[str, Any], adapt: Adapt | None = None
) -> Restored | None:
    """The newest good checkpoint (see `restore`); None when there is none at all.

    A corrupt one is reported in a warning, set aside as `<step>.corrupt` (so the run can
    write that step again) and the next older one is tried. Raises CheckpointError when every
    checkpoint is corrupt, or when a good one has another structure.
    """
    errors = []
    for step in reversed(steps(folder)):
        try:
            restored = restore(folder, step, like, adapt)
        except StructureError:
            raise
        except CheckpointError as error:
            errors.append(f"{error}")
            log.warning("%s; trying the next older checkpoint", error)
            continue
        worse = [s for s in steps(folder) if s > step]
        if jax.process_count() > 1:  # nobody may still be reading them
            multihost_utils.sync_global_devices(f"restored {step}")
        for bad in worse:
            _set_aside(folder, bad)
        return restored
    if errors:
        raise CheckpointError(
            f"no checkpoint in {folder} can be used; move the folder away to start anew. "
            + "; ".join(errors)
        )
    return None


def best_step(folder: pathlib.Path) -> int | None:
    """Step of the best checkpoint as the newest readable one knows it; None: none known."""
    for step in reversed(steps(folder)):
        try:
            return _record(folder, step)["best"]
        except CheckpointError as error:
            log.warning("%s; asking the next older checkpoint", error)
    return None


def load_params(
    folder: pathlib.Path, like: Any, which: str = "best", part: str = ""
) -> tuple[int, Any]:
    """(step, parameters) for evaluation and serving: the averaged ones where a run keeps them.

    like: tree of arrays or ShapeDtypeStructs. which: best (the latest where nothing was
    validated), latest, or a step number. part: parameters that are stored apart, `item_tower`.
    Raises CheckpointError.
    """
    known = steps(folder)
    if not known:
        raise CheckpointError(f"no checkpoint in {folder}: train first, or name another workdir")
    if which not in ("best", "latest") and not which.isdecimal():
        raise CheckpointError(f"checkpoint {which!r}: allowed are best, latest or a step number")
    best = best_step(folder) if which == "best" else None
    step = int(which) if which.isdecimal() else known[-1] if best is None else best
    averaged = step in known and any(
        leaf.startswith("ema/") for leaf in _record(folder, step)["leaves"]
    )
    name = "ema" if averaged else "params"
    name += f"_{part}" if part else ""
    return step, restore(folder, step, {name: like}).trees[name]


def retain(folder: pathlib.Path, keep: int) -> None:
    """Deletes all but the `keep` newest checkpoints and the best one each of those names.

    Every retained checkpoint's best survives, not the newest's alone: should the newest turn
    out corrupt, the run goes back to an older one and still finds its best.
    """
    known = steps(folder)
    kept = set(known[-keep:])
    for step in known[-keep:]:
        try:
            kept.add(_record(folder, step)["best"])
        except CheckpointError as error:
            log.warning("%s; nothing is deleted", error)
            return
    for step in known:
        if step not in kept:
            _delete(folder / str(step))


def clean(folder: pathlib.Path) -> None:
    """Removes what a killed process left half-written or half-deleted."""
    if jax.process_index() or not folder.is_dir():
        return
    for path in folder.glob(f"*{_NEW}"):  # killed between the record and the last rename
        final = folder / path.name.removesuffix(_NEW)
        if (path / RECORD).exists() and not final.exists():
            path.rename(final)
    for path in folder.iterdir():
        if _uncommitted(path.name) or path.name.endswith((_DELETING, _NEW)):
            shutil.rmtree(path, ignore_errors=True)


def _uncommitted(name: str) -> bool:
    """Whether a folder is one of Orbax's uncommitted checkpoints."""
    return ".orbax-checkpoint-tmp" in name


# -- one checkpoint's record ---------------------------------------------------------------


def _record(folder: pathlib.Path, step: int) -> dict[str, Any]:
    """What `save` wrote beside the arrays. Raises CheckpointError when it is not intact."""
    file = folder / str(step) / RECORD
    try:
        stored = json.loads(file.read_bytes())
        record, digest = stored["record"], stored["digest"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"checkpoint {step} in {folder} is corrupt: {file.name} cannot be read: "
            f"{_first_line(error)}"
        ) from error
    if _json_digest(record) != digest or record["step"] != step:
        raise CheckpointError(
            f"checkpoint {step} in {folder} is corrupt: {file.name} is not what was saved"
        )
    if record["format"] != FORMAT:
        raise CheckpointError(
            f"checkpoint {step} in {folder} has format {record['format']}, this version reads "
            f"{FORMAT}"
        )
    return record


def _check_files(
    folder: pathlib.Path, step: int, files: Mapping[str, list[Any]], trees: tuple[str, ...]
) -> None:
    """Raises CheckpointError unless the files of `trees` are what was saved."""
    root, bad = folder / str(step), []
    for name, (size, digest) in files.items():
        top, _, below = name.partition("/")
        if below and top not in trees:
            continue
        try:
            found_size, found = _file_digest(root / name)
        except OSError as error:
            bad.append(f"{name}: {error.strerror or error}")
            continue
        if found_size != size:
            bad.append(f"{name} has {found_size} bytes, {size} were saved")
        elif found != digest:
            bad.append(f"{name} has digest {found}, {digest} was saved")
    if bad:
        more = f" and {len(bad) - 3} more files" if len(bad) > 3 else ""
        raise CheckpointError(
            f"checkpoint {step} in {folder} is corrupt: {'; '.join(bad[:3])}{more}"
        )


def _file_digest(path: pathlib.Path) -> list[Any]:
    """[bytes, BLAKE2] of a file."""
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16))
        return [file.tell(), digest.hexdigest()]


def _json_digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


# -- failures ------------------------------------------------------------------------------


def _save_failure(folder: pathlib.Path, step: int, error: Exception) -> str:
    # TensorStore reports the operating system's error in its message alone
    number = getattr(error, "errno", None)
    text = str(error)
    full = number in _FULL or any(f"os_error_code='{n}'" in text for n in _FULL)
    why = f"the disk (or a quota) of {folder} is full" if full else "writing failed"
    free = ""
    with contextlib.suppress(OSError):
        free = f"; {shutil.disk_usage(folder).free / 2**20:.1f} MiB are free"
    return (
        f"checkpoint {step} was not saved, {why}{free}. Earlier checkpoints are intact "
        f"({steps(folder) or 'there are none'}): make room and start the same command again. "
        f"{_first_line(error)}"
    )


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:300]


def _set_aside(folder: pathlib.Path, step: int) -> None:
    if jax.process_index():
        return
    target = folder / f"{step}{_CORRUPT}"
    if target.exists():
        shutil.rmtree(target)
    (folder / str(step)).rename(target)


def _delete(path: pathlib.Path, between: Callable[[], Any] | None = None) -> None:
    """Renames first: a process killed while deleting leaves no half checkpoint.

    between: what to do once `path` is free.
    """
    if jax.process_index():
        return
    doomed = path.with_name(path.name + _DELETING)
    path.rename(doomed)
    if between is not None:
        between()
    shutil.rmtree(doomed, ignore_errors=True)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Orbax logs every thread's traceback of an error that it raises as well.

    It also leaves coroutines that nobody awaits; they are dropped here, where Python's
    complaint about them can be told from one about the caller's.
    """
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    except Exception as error:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
            while_handling: BaseException | None = error
            while while_handling is not None:
                traceback.clear_frames(while_handling.__traceback__)
                while_handling = while_handling.__cause__ or while_handling.__context__
            gc.collect()
        raise
    finally:
        logger.setLevel(level)
