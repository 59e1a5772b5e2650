"""`record.json` of a snapshot: its table of contents, with the checksums of its parts."""

import pathlib
import re
from typing import NamedTuple

from jaxrec.errors import StoreError
from jaxrec.state_store.metadata import Metadata, parse_metadata, read_json
from jaxrec.state_store.places import open_root
from jaxrec.types import Json
from jaxrec.untrusted import json_objects

RECORD = "record.json"
MAX_PART_USERS = 1 << 20
_CRC = (1 << 32) - 1


class Part(NamedTuple):
    """One Orbax checkpoint: users of one shard whose keys lie in [low, high] (hex).

    keys_crc: of the users' keys. rows_crc: of the rows' checksums.
    """

    name: str
    shard: int
    users: int
    low: str
    high: str
    keys_crc: int
    rows_crc: int


class Record(NamedTuple):
    """The content: identity of the snapshot, its step, users, store and parts."""

    identity: str
    step: int
    users: int
    metadata: Metadata
    parts: list[Part]

    def to_json(self) -> Json:
        """The content of the file."""
        return {
            "id": self.identity,
            "step": self.step,
            "users": self.users,
            "store": self.metadata.to_json(),
            "parts": [part._asdict() for part in self.parts],
        }


def read(folder: pathlib.Path) -> Record:
    """The record of a snapshot's folder. Raises StoreError when it is missing or damaged."""
    where = str(folder / RECORD)
    content, _ = read_json(open_root(folder), RECORD)
    if content is None:
        raise StoreError(f"{where}: missing")
    store = json_objects.get(content, "store", dict, where, StoreError)
    # first: a record of an earlier format lacks what follows
    metadata = parse_metadata(store, where)
    parts = json_objects.get(content, "parts", list, where, StoreError)
    return Record(
        identity=json_objects.get(content, "id", str, where, StoreError),
        step=json_objects.get(content, "step", int, where, StoreError),
        users=json_objects.get(content, "users", int, where, StoreError),
        metadata=metadata,
        parts=[_part(part, metadata, where) for part in parts],
    )


def _part(value: object, metadata: Metadata, where: str) -> Part:
    values = json_objects.check(value, dict, f"{where}: damaged: a part", StoreError)

    def number(key: str, high: int) -> int:
        return json_objects.size(values, key, where, StoreError, high=high)

    def text(key: str) -> str:
        return json_objects.get(values, key, str, where, StoreError)

    part = Part(
        name=json_objects.inside(values.get("name"), where, StoreError),
        shard=number("shard", metadata.num_shards - 1),
        users=number("users", MAX_PART_USERS),
        low=text("low"),
        high=text("high"),
        keys_crc=number("keys_crc", _CRC),
        rows_crc=number("rows_crc", _CRC),
    )
    for key in (part.low, part.high):
        if not re.fullmatch("([0-9a-f]{2})*", key):
            raise StoreError(f"{where}: damaged: {json_objects.shown(key)} is no key")
    return part
