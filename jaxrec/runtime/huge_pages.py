"""Memory in huge pages on Linux, where the system gives them to whoever asks.

On CPU XLA takes the arrays of a step from malloc and gives them back behind it, so that every step
touches fresh pages. With 4 KiB each they cost a good part of it (results/training_speed.json).
glibc's malloc asks for pages of 2 MiB where its tunable says so, which it reads when a program
starts. Many systems leave the choice to programs (`madvise`).

Nothing here imports jax or numpy.
"""

import os
import pathlib
import re
import sys
from collections.abc import Mapping

VARIABLE = "GLIBC_TUNABLES"
TUNABLE = "glibc.malloc.hugetlb"
SINCE = (2, 35)  # glibc that has it
DEVICES = (("dev",), ("proc",))
ENABLED = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")


def asked_for(environ: Mapping[str, str]) -> bool:
    """Whether the environment decides about huge pages, for or against."""
    return TUNABLE in environ.get(VARIABLE, "")


def switched_on(environ: Mapping[str, str]) -> bool:
    """Whether malloc asks for huge pages in a program with this environment."""
    return asked_for(environ) and f"{TUNABLE}=0" not in environ[VARIABLE]


def useful(enabled: pathlib.Path = ENABLED) -> bool:
    """Whether asking makes a difference: a system that leaves it to programs, and a glibc that can.

    enabled: the system's file.
    """
    try:
        library = os.confstr("CS_GNU_LIBC_VERSION") or ""
        if "[madvise]" not in enabled.read_text():
            return False
    except (AttributeError, OSError, ValueError):  # not Linux, or not glibc
        return False
    version = re.fullmatch(r"glibc (\d+)\.(\d+).*", library)
    return version is not None and tuple(map(int, version.groups())) >= SINCE


def start_again() -> None:
    """Replaces a program that has just started by itself with huge pages, where they are useful.

    To be called before anything is done; the process keeps its number. Nothing happens where
    GLIBC_TUNABLES has the tunable already (`glibc.malloc.hugetlb=0` switches huge pages off) or
    where the program is no file that can be started again.
    """
    program = pathlib.Path(sys.argv[0])
    # a program that is read from a pipe or a terminal cannot be read twice
    can_start = sys.executable and program.is_file() and program.parts[1:2] not in DEVICES
    if asked_for(os.environ) or not can_start or not useful():
        return
    given = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = f"{given}:{TUNABLE}=1" if given else f"{TUNABLE}=1"
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
