"""The environment of a run: versions, devices, git revision."""

import datetime
import importlib.metadata
import json
import pathlib
import platform
import subprocess

import jax

from jaxrec.errors import WorkdirError
from jaxrec.runtime import workdir
from jaxrec.types import Json
from jaxrec.untrusted import json_objects

PACKAGES = (
    "jaxrec",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "tensorstore",
    "grain",
    "array_record",
    "tensorflow-datasets",
    "numpy",
    "polars",
)


def describe() -> Json:
    """JSON values; null for packages that are not installed and without a git checkout."""
    devices = jax.devices()
    return {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "packages": {name: _version(name) for name in PACKAGES},
        "devices": {"platform": devices[0].platform, "kind": devices[0].device_kind},
        "device_count": len(devices),
        "process_count": jax.process_count(),
        "git": git_revision(pathlib.Path(__file__).parents[2]),
    }


def record(folder: pathlib.Path, step: int) -> None:
    """Adds this start of the run, from `step`, to `<folder>/environment.json`.

    Raises WorkdirError for a damaged file.
    """
    path = folder / "environment.json"
    starts: list[Json] = []
    if path.exists():
        content = json_objects.read_bytes(path, _damaged, max_bytes=json_objects.MAX_BYTES)
        found = json_objects.parse_value(content, str(path), _damaged)
        starts = json_objects.check(found, list, f"{path}: damaged: the starts", _damaged)
        for start in starts:
            json_objects.check(start, dict, f"{path}: damaged: a start", _damaged)
    workdir.write_text(path, json.dumps([*starts, {"step": step, **describe()}], indent=2))


def _damaged(text: str) -> WorkdirError:
    return WorkdirError(f"{text}. Move the file away: a new one is begun")


def git_revision(folder: pathlib.Path) -> str | None:
    """Commit hash, with `-dirty` behind it when tracked files differ.

    None unless `folder` is the top of a git checkout (an installed package is not).
    """
    if not (folder / ".git").exists():
        return None
    try:
        revision = _git(folder, "rev-parse", "HEAD")
        changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return revision + ("-dirty" if changed else "")


def _git(folder: pathlib.Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
