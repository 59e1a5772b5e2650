"""NumPy's files, whose headers are compared with the bytes that are there before anything is read.

`numpy.load` allocates what a header declares. Here an `.npy` must be exactly as long as its header
says, and the members of an `.npz` must not unpack to more than is plausible.
"""

import math
import os
import zipfile
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
from numpy.lib import format as npy

from jaxrec.untrusted.json_objects import Refuse

MAX_MEMBERS = 10_000  # of an .npz
# Packed bytes to plain ones. Deflate reaches 1,032 for zeros; numbers stay far below this.
MAX_RATIO = 200
FREE_BYTES = 1 << 24  # that an archive may always unpack to
# what NumPy and zipfile raise for bytes that are no such file
_DAMAGE = (
    ArithmeticError,
    AssertionError,
    EOFError,
    KeyError,
    IndexError,
    MemoryError,
    NotImplementedError,
    OSError,
    RecursionError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    zipfile.BadZipFile,
    zlib.error,
)


def read_npy(file: Path, refuse: Refuse) -> np.ndarray:
    """The array of an `.npy` file.

    refuse: as in `json_objects.read`. Raises its error for a file that is missing, damaged, holds
    Python objects, or is not as long as its header says.
    """
    try:
        with file.open("rb") as stream:
            return _read(stream, os.fstat(stream.fileno()).st_size)
    except _DAMAGE as error:
        raise refuse(f"{file}: damaged: {_reason(error)}") from error


def read_npz(file: Path, refuse: Refuse, *needed: str) -> dict[str, np.ndarray]:
    """Name -> array of an `.npz` file; needed: names that it must have. Raises as `read_npy`."""
    try:
        with file.open("rb") as stream, zipfile.ZipFile(stream) as archive:
            members = archive.infolist()
            _check_members(members, os.fstat(stream.fileno()).st_size)
            arrays = {}
            for member in members:
                with archive.open(member) as packed:
                    value = _read(cast("BinaryIO", packed), member.file_size)
                    packed.read(1)  # the end of the member, where its checksum is compared
                arrays[member.filename.removesuffix(".npy")] = value
    except _DAMAGE as error:
        raise refuse(f"{file}: damaged: {_reason(error)}") from error
    missing = [name for name in needed if name not in arrays]
    if missing:
        raise refuse(f"{file}: damaged: has no {', '.join(missing)}")
    return arrays


def check_unpacked(packed: int, plain: int, what: str) -> None:
    """Raises ValueError where `packed` bytes claim to be implausibly many `plain` ones."""
    if plain > FREE_BYTES + MAX_RATIO * packed:
        raise ValueError(f"{what} declares {plain:,} bytes in {packed:,} packed ones")


def _check_members(members: Collection[zipfile.ZipInfo], size: int) -> None:
    if len(members) > MAX_MEMBERS:
        raise ValueError(f"{len(members):,} members, at most {MAX_MEMBERS:,} are read")
    # of the whole file: members may share their packed bytes
    check_unpacked(size, sum(member.file_size for member in members), "the archive")


def _read(stream: BinaryIO, size: int) -> np.ndarray:
    """The array in a stream of `size` bytes."""
    version = npy.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"version {version} of the format is not read")
    header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, fortran, dtype = header(stream)
    if dtype.hasobject:
        raise ValueError("holds Python objects, which are not read")
    if not dtype.itemsize or any(number < 0 for number in shape):
        raise ValueError(f"shape {shape} of {dtype}")
    declared = math.prod(shape) * dtype.itemsize
    there = size - stream.tell()
    if declared != there:
        raise ValueError(f"its header declares {declared} bytes, there are {there}")
    content = stream.read(declared)
    if len(content) != declared:
        raise EOFError(f"{len(content)} of {declared} bytes are there")
    array = np.frombuffer(bytearray(content), dtype) if declared else np.empty(shape, dtype)
    return array.reshape(shape[::-1]).T if fortran else array.reshape(shape)


def _reason(error: BaseException) -> str:
    """One short line that says what is wrong."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
