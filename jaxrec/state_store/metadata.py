"""The metadata of a store: `store.json`, and the model that the store is bound to.

Small JSON files carry a checksum of their own content, so a damaged one raises an error that names
the file instead of being misread. They are written as a whole (temporary file and rename on
local disks, one conditional put on object stores).
"""

import dataclasses
import json
import os
import zlib

from jaxrec.errors import StoreError
from jaxrec.state_store.places import Place, display, local_path
from jaxrec.state_store.row_format import RowSpec
from jaxrec.types import Json
from jaxrec.untrusted import json_objects

# Version of the store's layout: 3 added the store's identity to every shard.
FORMAT = 3
REBUILD = "build it again with `jaxrec states build`"
STORE_FILE = "store.json"
COPY_FILE = "copy.json"
MAX_BYTES = 1 << 28  # of the small files: the largest is a snapshot's record, 200 bytes a part
MAX_SHARDS = 4096
MAX_ROW_BYTES = 1 << 30  # of one user


@dataclasses.dataclass(frozen=True)
class Binding:
    """What the rows of a store depend on; a store opens only with an equal one.

    params: hash of the model's parameters. layout: digest of the segment layout.
    vocabulary: digest of the item vocabulary. encoding: how the tokens' vectors are encoded.
    """

    params: str
    layout: str
    vocabulary: str
    encoding: str


@dataclasses.dataclass(frozen=True)
class Metadata:
    """The content of `store.json`; `identity` is a random name given at creation."""

    identity: str
    num_shards: int
    binding: Binding
    spec: RowSpec

    def to_json(self) -> Json:
        """The content of the file."""
        return {
            "format": FORMAT,
            "identity": self.identity,
            "num_shards": self.num_shards,
            "binding": dataclasses.asdict(self.binding),
            "row": self.spec.to_json(),
        }


def check_num_shards(num_shards: int) -> None:
    """Raises ValueError when a store cannot have so many."""
    if not 1 <= num_shards <= MAX_SHARDS:
        raise ValueError(f"num_shards={num_shards}: allowed is 1 to {MAX_SHARDS}")


def parse_metadata(content: Json, where: str) -> Metadata:
    """The inverse of `Metadata.to_json`; where: the file, for messages.

    Raises StoreError when the format is another one or a key is missing.
    """
    version = content.get("format")
    if isinstance(version, bool):
        version = None
    if isinstance(version, int) and version < FORMAT:
        raise StoreError(
            f"{where}: format {version} found, this version reads {FORMAT}: made by an earlier "
            f"layout of jaxrec: {REBUILD}"
        )
    if version != FORMAT:
        raise StoreError(
            f"{where}: format {version!r} found, this version reads {FORMAT}: open it with the "
            f"jaxrec that made it, or {REBUILD}"
        )

    def refuse(text: str) -> StoreError:
        return StoreError(f"{text}; {REBUILD}")

    binding = json_objects.get(content, "binding", dict, where, refuse)
    names = [field.name for field in dataclasses.fields(Binding)]
    try:
        spec = RowSpec.from_json(json_objects.get(content, "row", list, where, refuse))
        if spec.row_bytes > MAX_ROW_BYTES:
            raise ValueError(f"a row of {json_objects.shown(spec.row_bytes)} bytes")
    except (TypeError, ValueError) as error:
        raise refuse(f"{where}: damaged: {type(error).__name__} {error}") from error
    return Metadata(
        identity=json_objects.get(content, "identity", str, where, refuse),
        num_shards=json_objects.size(content, "num_shards", where, refuse, low=1, high=MAX_SHARDS),
        binding=Binding(**{n: json_objects.get(binding, n, str, where, refuse) for n in names}),
        spec=spec,
    )


def check_binding(stored: Metadata, binding: Binding, spec: RowSpec | None, where: str) -> None:
    """Raises StoreError with both values of everything that differs."""
    differences = [
        f"{field.name}: store {getattr(stored.binding, field.name)!r}, "
        f"given {getattr(binding, field.name)!r}"
        for field in dataclasses.fields(Binding)
        if getattr(stored.binding, field.name) != getattr(binding, field.name)
    ]
    if spec is not None and spec != stored.spec:
        before = {field.name: (field.shape, field.dtype) for field in stored.spec.fields}
        now = {field.name: (field.shape, field.dtype) for field in spec.fields}
        names = [name for name in before | now if before.get(name) != now.get(name)]
        differences += [
            f"row field {name}: store {before.get(name)}, given {now.get(name)}" for name in names
        ] or [f"row order: store {list(before)}, given {list(now)}"]
    if differences:
        raise StoreError(
            f"{where}: the store belongs to another model ({'; '.join(differences)}); "
            "open it with that model or rebuild it"
        )


# -- small files ---------------------------------------------------------------------------


def write_json(place: Place, name: str, content: Json, if_equal: bytes | None = None) -> bool:
    """Writes a file as a whole; False when its version is no longer `if_equal`.

    if_equal: a version that `read_json` returned (that of an absent file included).
    """
    body = json.dumps(content, sort_keys=True)
    text = json.dumps({"crc32": zlib.crc32(body.encode()), "content": content}, indent=1)
    try:
        stamp = place.kvstore.write(name, text, if_equal=if_equal).result()
    except ValueError as error:
        raise StoreError(f"{display(place, name)}: cannot be written: {error}") from error
    return bool(stamp.generation)


def delete_json(place: Place, name: str) -> None:
    """Deletes a file, if it is there."""
    try:
        place.kvstore.write(name, None).result()
    except ValueError as error:
        raise StoreError(f"{display(place, name)}: cannot be deleted: {error}") from error


def read_json(place: Place, name: str) -> tuple[Json | None, bytes]:
    """(content, version); content is None when there is no such file."""
    where = display(place, name)
    path = local_path(place)
    if path and os.path.isfile(path + name) and os.path.getsize(path + name) > MAX_BYTES:
        raise _damaged(where, os.path.getsize(path + name))
    try:
        result = place.kvstore.read(name).result()
    except ValueError as error:
        raise StoreError(f"{where}: cannot be read: {error}") from error
    if result.state == "missing":
        return None, result.stamp.generation

    def refuse(text: str) -> StoreError:
        return _damaged(where, len(result.value))

    text = json_objects.parse(result.value, where, refuse)
    content = json_objects.get(text, "content", dict, where, refuse)
    if zlib.crc32(json.dumps(content, sort_keys=True).encode()) != text.get("crc32"):
        raise refuse("")
    return content, result.stamp.generation


def _damaged(where: str, size: int) -> StoreError:
    return StoreError(
        f"{where}: damaged ({size} bytes): not the content that was written; restore it from a "
        "snapshot or rebuild the store"
    )
