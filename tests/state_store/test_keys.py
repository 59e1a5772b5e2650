"""Ids and keys: one to one, stable for ever; damage of a row is seen."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxrec.state_store import keys

ints = st.integers(-(2**63), 2**63 - 1)
texts = st.text(max_size=20)
ids = st.one_of(ints, texts, ints.map(str))


@given(st.lists(ids, unique_by=lambda x: (type(x), x), max_size=30))
def test_keys_are_one_to_one(user_ids):
    encoded, hashes = keys.encode_ids(keys.id_list(user_ids))
    assert len(set(encoded)) == len(user_ids)
    assert [keys.decode_key(key) for key in encoded] == user_ids
    assert [type(keys.decode_key(key)) for key in encoded] == [type(x) for x in user_ids]
    assert all(len(key) > 2 for key in encoded)  # never a shard's own key
    assert [key[:2] for key in encoded] == [(int(h) >> 48).to_bytes(2, "big") for h in hashes]


def test_a_number_and_its_text_are_different_users():
    encoded, _ = keys.encode_ids([5, "5"])
    assert encoded[0] != encoded[1]


def test_hashes_never_change():
    """They decide where a user lies: another hash would lose every store."""
    _, hashes = keys.encode_ids([0, 1, -1, 2**63 - 1, "", "user-1"])
    assert hashes.tolist() == [
        0xE220A8397B1DCDAF,  # splitmix64 from state 0: the generator's published first value
        0x910A2DEC89025CC1,
        0xE4D971771B652C20,
        0x2A67D7552E039EA7,
        0xE4A6A0577479B2B4,  # BLAKE2b with an 8-byte digest, of no bytes
        0x9AAC5A8621EAE188,
    ]
    assert keys.shard_numbers(hashes[:2], 8).tolist() == [7, 1]


def test_shards_and_prefixes_are_even():
    _, hashes = keys.encode_ids(list(range(20000)))
    shards = np.bincount(keys.shard_numbers(hashes, 8), minlength=8)
    assert shards.min() > 2300
    assert shards.max() < 2700
    prefixes = np.bincount((hashes >> np.uint64(60)).astype(int), minlength=16)
    assert prefixes.min() > 1050


def test_numpy_ids_are_those_of_python():
    assert keys.id_list(np.array([3, -4], np.int32)) == [3, -4]
    assert keys.id_list(np.array(["a", "b"])) == ["a", "b"]
    assert keys.id_list([np.int64(7), np.str_("x")]) == [7, "x"]


@pytest.mark.parametrize(
    ("given_ids", "error", "message"),
    [
        ("abc", TypeError, "a sequence of ids is needed"),
        ([1.0], TypeError, "user id 1.0: int or str"),
        ([True], TypeError, "user id True"),
        ([None], TypeError, "user id None"),
        ([b"x"], TypeError, "user id b'x'"),
        (np.array([1.5]), TypeError, "user id 1.5"),
        ([2**63], ValueError, "outside int64"),
        (["\ud800"], ValueError, "not valid Unicode"),
        (["x" * 1025], ValueError, "1025 bytes, at most 1024"),
        (np.zeros((2, 2), int), ValueError, "one axis is needed"),
    ],
)
def test_what_is_no_id_is_refused(given_ids, error, message):
    with pytest.raises(error, match=message):
        keys.id_list(given_ids)


@given(st.binary(min_size=1, max_size=40), st.data())
def test_every_flipped_bit_and_every_cut_is_damage(row, data):
    (key,), _ = keys.encode_ids([7])
    (value,) = keys.encode_rows([key], np.frombuffer(row, np.uint8)[None])
    assert keys.row_damage(key, value, len(row)) == ""
    assert keys.decode_rows([value], len(row)).tobytes() == row
    at = data.draw(st.integers(0, len(value) * 8 - 1))
    flipped = bytearray(value)
    flipped[at // 8] ^= 1 << at % 8
    assert keys.row_damage(key, bytes(flipped), len(row))
    cut = data.draw(st.integers(0, len(value) - 1))
    assert "expected" in keys.row_damage(key, value[:cut], len(row))


def test_a_row_under_another_users_key_is_damage():
    (one, other), _ = keys.encode_ids([1, 2])
    (value,) = keys.encode_rows([one], np.zeros((1, 4), np.uint8))
    assert "checksum" in keys.row_damage(other, value, 4)
