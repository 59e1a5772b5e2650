"""Writing checkpoints, and deleting those that are no longer needed."""

import contextlib
import errno
import logging
import pathlib
import shutil
from collections.abc import Callable, Mapping

import jax
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from jaxrec.errors import CheckpointError
from jaxrec.runtime import leaves, workdir
from jaxrec.runtime.checkpoint import integrity
from jaxrec.runtime.checkpoint.integrity import RECORD, Record, StoredLeaf, steps
from jaxrec.runtime.checkpoint.quiet import quiet_orbax
from jaxrec.types import Json, Tree

_DELETING = ".deleting"
_CORRUPT = ".corrupt"
_NEW = ".new"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

log = logging.getLogger(__name__)


def save(
    folder: pathlib.Path,
    step: int,
    trees: Mapping[str, Tree],
    meta: Json,
    *,
    best: int | None = None,
    replace: bool = False,
) -> None:
    """Writes checkpoint `step` and returns when it is committed.

    trees: name -> pytree of arrays. meta: JSON values (floats come back bit for bit). best: step of
    the best checkpoint so far, this one included. replace: a checkpoint of that step may exist; it
    stays until the new one is complete.
    Raises CheckpointError when it cannot be written (disk full); earlier ones stay intact.
    """
    final, new = folder / str(step), folder / f"{step}{_NEW}"
    if final.exists() and not replace:
        raise CheckpointError(f"checkpoint {step} in {folder} exists already")
    flat = {name: leaves.flatten(tree) for name, tree in trees.items()}
    stored = {
        f"{name}/{path}": StoredLeaf(tuple(x.shape), str(x.dtype), leaves.digest(x))
        for name, tree in flat.items()
        for path, x in tree.items()
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        clean(folder)
        with quiet_orbax():
            ocp.save_checkpointables(new.absolute(), flat)
        if not jax.process_index():
            files = {
                str(path.relative_to(new)): integrity.file_digest(path)
                for path in sorted(new.rglob("*"))
                if path.is_file()
            }
            integrity.write_record(
                new, Record(step, best, stored, dict(meta), files, workdir.run_id(folder.parent))
            )
            if final.exists():
                _delete(final, lambda: new.rename(final))
            else:
                new.rename(final)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(f"checkpoint {step}")
    except Exception as error:
        clean(folder)
        raise CheckpointError(_save_failure(folder, step, error)) from error


def retain(folder: pathlib.Path, keep: int) -> None:
    """Deletes all but the `keep` newest checkpoints and the best one that each of those names.

    The best of every retained checkpoint survives, not the newest's alone: if the newest turns out
    to be corrupt, the run goes back to an older one and still finds its best.
    """
    known = steps(folder)
    kept = set(known[-keep:])
    for step in known[-keep:]:
        try:
            best = integrity.read_record(folder, step).best
        except CheckpointError as error:
            log.warning("%s; nothing is deleted", error)
            return
        if best is not None:
            kept.add(best)
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


def set_aside(folder: pathlib.Path, step: int) -> None:
    """Renames a corrupt checkpoint, so that the run can write its step again."""
    if jax.process_index():
        return
    target = folder / f"{step}{_CORRUPT}"
    if target.exists():
        shutil.rmtree(target)
    (folder / str(step)).rename(target)


def _uncommitted(name: str) -> bool:
    """Whether a folder is one of Orbax's uncommitted checkpoints."""
    return ".orbax-checkpoint-tmp" in name


def _delete(path: pathlib.Path, between: Callable[[], object] | None = None) -> None:
    """Deletes a checkpoint; renamed first, so that a killed process leaves no half of it.

    between: called once `path` is free.
    """
    if jax.process_index():
        return
    doomed = path.with_name(path.name + _DELETING)
    path.rename(doomed)
    if between is not None:
        between()
    shutil.rmtree(doomed, ignore_errors=True)


def _save_failure(folder: pathlib.Path, step: int, error: Exception) -> str:
    """The message of a failed save, with the space that is left."""
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
        f"{integrity.first_line(error)}"
    )
