"""Histories <-> serialized `tf.train.Example` records, byte for byte reproducible.

Protocol buffers leave the order of map entries open; their deterministic serialization sorts them
by name, so equal histories give equal files. The message is the one that TFDS ships.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np


def encode(
    users: np.ndarray,
    raw_ids: Sequence[int | str],
    counts: np.ndarray,
    lists: dict[str, np.ndarray],
) -> Iterator[bytes]:
    """One record for each user.

    users: int [U] dense indices. raw_ids: [U]. counts: int [U], events of each user.
    lists: feature -> int or bool [N] values >= 0 of all events, user after user.
    """
    from tensorflow_datasets.proto import tf_example_pb2

    ends = np.cumsum(counts)
    places = zip((ends - counts).tolist(), ends.tolist(), strict=True)
    for user, raw, (first, stop) in zip(users.tolist(), raw_ids, places, strict=True):
        example = tf_example_pb2.Example()
        feature = example.features.feature
        feature["user"].int64_list.value.append(user)
        if isinstance(raw, str):
            feature["raw_id"].bytes_list.value.append(raw.encode())
        else:
            feature["raw_id"].int64_list.value.append(raw)
        for name, column in lists.items():
            feature[name].int64_list.value.extend(column[first:stop].astype(np.int64).tolist())
        yield example.SerializeToString(deterministic=True)


def decode(records: Sequence[bytes]) -> list[dict[str, np.ndarray]]:
    """Features of serialized examples: int64 [N] lists, and texts as bytes objects.

    Raises ValueError for bytes that are no such message.
    """
    from google.protobuf.message import DecodeError
    from tensorflow_datasets.proto import tf_example_pb2

    rows = []
    for record in records:
        try:
            example = tf_example_pb2.Example.FromString(record)
        except DecodeError as error:
            raise ValueError(f"no message of an example, or it ends inside ({error})") from error
        if not example.features.feature:
            raise ValueError("the message of an example has no features")
        rows.append({name: _values(kind) for name, kind in example.features.feature.items()})
    return rows


def _values(feature: Any) -> np.ndarray:
    """The values of a `tf.train.Feature`."""
    if feature.HasField("bytes_list"):
        (text,) = feature.bytes_list.value
        return text
    values = feature.int64_list.value
    return np.fromiter(values, np.int64, len(values))
