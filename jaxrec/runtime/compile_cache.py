"""JAX's persistent compilation cache: a second start does not compile again.

Programs are kept by what they compute, the version of the compiler and the kind of device. On CPU
they hold instructions of this kind of processor: each kind gets a folder of its own, because home
folders are shared between machines.
"""

import hashlib
import os
import pathlib
import platform
from collections.abc import Mapping

import jax

from jaxrec.runtime import progress

OFF = "off"
SECONDS = 0.2  # programs that compile faster are not kept


def folder(setting: str, environment: Mapping[str, str] = os.environ) -> pathlib.Path | None:
    """The folder that `train.compilation_cache` means; None: no cache.

    setting: a folder, `off`, or empty: `$XDG_CACHE_HOME/jaxrec/compiled`, by default
    `~/.cache/jaxrec/compiled`; None where there is no home folder.
    """
    if setting == OFF:
        return None
    if setting:
        return pathlib.Path(setting)
    base = environment.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(base):  # others are to be ignored, says the XDG specification
        home = environment.get("HOME", "")
        if not os.path.isabs(home):
            return None
        base = os.path.join(home, ".cache")
    return pathlib.Path(base) / "jaxrec" / "compiled" / _processor()


def use(setting: str) -> None:
    """Switches the cache on that `train.compilation_cache` asks for.

    An empty setting leaves a cache that is on already ($JAX_COMPILATION_CACHE_DIR) as it is. Where
    the folder cannot be written, a line says so and everything is compiled.
    """
    current = jax.config.values.get("jax_compilation_cache_dir")
    if setting == OFF:
        jax.config.update("jax_compilation_cache_dir", None)
        return
    place = folder(setting)
    if place is None or (current is not None and not setting):
        return
    try:
        place.mkdir(parents=True, exist_ok=True)
        if not os.access(place, os.W_OK):
            raise PermissionError(f"{place} cannot be written")
    except OSError as error:
        progress.say(
            f"compiled programs are not kept: {error}; name a folder that can be written by "
            "--config.train.compilation_cache=FOLDER, or off"
        )
        return
    jax.config.update("jax_compilation_cache_dir", str(place))
    if not setting:  # a folder that the user names keeps JAX's own threshold
        jax.config.update("jax_persistent_cache_min_compile_time_secs", SECONDS)


def _processor() -> str:
    """A name of this kind of processor, such as `x86_64-3f2a9c01`."""
    flags = ""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    except OSError:
        pass  # not Linux
    digest = hashlib.blake2b(flags.encode(), digest_size=4).hexdigest()
    return f"{platform.machine()}-{digest}"
