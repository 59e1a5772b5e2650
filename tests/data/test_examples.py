import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxrec.config import DataConfig, SyntheticConfig
from jaxrec.data import examples, prepare

COUNTS = st.lists(st.integers(0, 5), min_size=1, max_size=6)


def encode(counts, values, raw_ids):
    lists = {"items": np.asarray(values, np.int32), "times": np.asarray(values[::-1], np.int32)}
    return list(examples.encode(np.arange(len(counts)), raw_ids, np.asarray(counts), lists))


@given(COUNTS, st.data())
def test_decodes_what_it_encoded(counts, data):
    size = sum(counts)
    values = data.draw(st.lists(st.integers(0, 2**31 - 1), min_size=size, max_size=size))
    raw = data.draw(
        st.lists(st.integers(-(2**63), 2**63 - 1), min_size=len(counts), max_size=len(counts))
    )
    found = examples.decode(encode(counts, values, raw))
    places = np.cumsum([0, *counts])
    for row, features in enumerate(found):
        first, stop = places[row : row + 2]
        assert features["user"].tolist() == [row]
        assert features["raw_id"].tolist() == [raw[row]]
        assert features["items"].tolist() == values[first:stop]
        assert features["times"].tolist() == values[::-1][first:stop]


def test_is_the_published_message():
    """By hand, from the wire format of protocol buffers."""
    (record,) = encode([2], [1, 300], ["é"])
    raw = b"\x0a\x02" + "é".encode()
    entries = [
        (b"items", b"\x1a\x05\x0a\x03\x01\xac\x02"),
        (b"raw_id", b"\x0a\x04" + raw),
        (b"times", b"\x1a\x05\x0a\x03\xac\x02\x01"),
        (b"user", b"\x1a\x03\x0a\x01\x00"),
    ]
    packed = b""
    for key, feature in entries:
        entry = b"\x0a" + bytes([len(key)]) + key + b"\x12" + bytes([len(feature)]) + feature
        packed += b"\x0a" + bytes([len(entry)]) + entry
    assert record == b"\x0a" + bytes([len(packed)]) + packed


def test_damaged_messages():
    (record,) = encode([2], [1, 300], [5])
    for damaged in (record[:-1], record[:8], b"\x12" + record[1:], b"\x0a\xff\xff\xff"):
        with pytest.raises(ValueError, match=r"message|field|map"):
            examples.decode([damaged])
    cut = record.replace(b"\x03\x01\xac\x02", b"\x03\x01\x01\xac")
    with pytest.raises(ValueError, match="ends inside"):
        examples.decode([cut])


@pytest.mark.parametrize("dataset", ["synthetic"])
def test_tfds_reads_the_records(dataset, tmp_path):
    import tensorflow_datasets as tfds

    synthetic = SyntheticConfig(users=20, items=50, events=100, gap=20)
    data = prepare(DataConfig(dataset=dataset, synthetic=synthetic, min_item_events=1), tmp_path)
    (folder,) = (data.folder / "records").glob("*/*")
    builder = tfds.builder_from_directory(folder)
    assert builder.info.splits["users"].num_examples == data.num_users
    for user, example in enumerate(builder.as_data_source(split="users")):
        record = data.source[user]
        assert example["user"] == user
        assert example["raw_id"] == data.users[user]
        assert (example["items"] == record.items).all()
        assert (example["times"] == record.times).all()
        assert (example["returning"] == record.returning).all()
        assert example["items"].dtype == np.int32
        assert example["returning"].dtype == np.bool_
