"""Three stores of equal rows of bytes, which `benchmarks.store` compares."""

import pathlib
from typing import Protocol

import numpy as np
import tensorstore as ts

from jaxrec.state_store import Binding, RowSpec, UserStateStore, database

BINDING = Binding(params="benchmark", layout="", vocabulary="", encoding="float32")


class RowStore(Protocol):
    """Rows uint8 [B, row_bytes] by user number [B]."""

    def fill(self, start: int, rows: np.ndarray) -> None: ...
    def read(self, users: np.ndarray) -> np.ndarray: ...
    def write(self, users: np.ndarray, rows: np.ndarray) -> None: ...
    def update(self, users: np.ndarray) -> None: ...
    def reopen(self) -> "RowStore": ...


class Store:
    """`UserStateStore`: a key-value row per user with a checksum."""

    def __init__(self, folder: pathlib.Path, users: int, row_bytes: int, shards: int) -> None:
        self.folder = folder
        spec = RowSpec.of({"row": np.zeros((1, row_bytes), np.uint8)})
        self.store = UserStateStore.create(folder, spec, BINDING, shards)

    def fill(self, start: int, rows: np.ndarray) -> None:
        self.store.write(range(start, start + len(rows)), {"row": rows})

    def read(self, users: np.ndarray) -> np.ndarray:
        return self.store.read(users)[0]["row"]

    def write(self, users: np.ndarray, rows: np.ndarray) -> None:
        self.store.write(users, {"row": rows})

    def update(self, users: np.ndarray) -> None:
        self.store.update(users, lambda ids, columns, found: {"row": columns["row"] ^ 1})

    def reopen(self) -> "Store":
        self.store.close()
        self.store = UserStateStore.open(self.folder, BINDING, mode="w")
        return self


class Zarr:
    """One zarr3 array; every batch is one atomic transaction, as in `Store`."""

    def __init__(self, folder: pathlib.Path, users: int, row_bytes: int) -> None:
        self.spec = {
            "driver": "zarr3",
            "kvstore": {
                "driver": "ocdbt",
                "base": {"driver": "file", "path": f"{folder}/"},
                "config": {"max_decoded_node_bytes": database.NODE_BYTES, "compression": None},
            },
            "path": "rows",
        }
        self.array = ts.open(
            self.spec,
            create=True,
            dtype=ts.uint8,
            shape=[users, row_bytes],
            chunk_layout=ts.ChunkLayout(chunk_shape=[1, row_bytes]),
            codec=ts.CodecSpec(
                {"driver": "zarr3", "codecs": [{"name": "bytes"}, {"name": "crc32c"}]}
            ),
        ).result()

    def fill(self, start: int, rows: np.ndarray) -> None:
        self.write(np.arange(start, start + len(rows)), rows)

    def read(self, users: np.ndarray) -> np.ndarray:
        return self.array[users].read().result()

    def write(self, users: np.ndarray, rows: np.ndarray) -> None:
        with database.transaction() as transaction:
            self.array.with_transaction(transaction)[users].write(rows).result()

    def update(self, users: np.ndarray) -> None:
        with database.transaction() as transaction:
            view = self.array.with_transaction(transaction)[users]
            view.write(view.read().result() ^ 1).result()

    def reopen(self) -> "Zarr":
        self.array = ts.open(self.spec, open=True, context=ts.Context()).result()
        return self


class Memmap:
    """One file of rows, mapped into memory."""

    def __init__(self, folder: pathlib.Path, users: int, row_bytes: int) -> None:
        folder.mkdir()
        self.path, self.shape = folder / "rows", (users, row_bytes)
        self.rows = np.memmap(self.path, np.uint8, "w+", shape=self.shape)

    def fill(self, start: int, rows: np.ndarray) -> None:
        self.rows[start : start + len(rows)] = rows
        self.rows.flush()

    def read(self, users: np.ndarray) -> np.ndarray:
        return self.rows[users]

    def write(self, users: np.ndarray, rows: np.ndarray) -> None:
        self.rows[users] = rows
        self.rows.flush()

    def update(self, users: np.ndarray) -> None:
        self.write(users, self.rows[users] ^ 1)

    def reopen(self) -> "Memmap":
        del self.rows  # unmapped
        self.rows = np.memmap(self.path, np.uint8, "r+", shape=self.shape)
        return self
