"""The readers of JSON and of arrays: whatever a file holds, they return or name it."""

import json
import tracemalloc

import numpy as np
import pytest

from jaxrec.errors import DataError
from jaxrec.untrusted import arrays, json_objects
from tests.attacks import hostile


@pytest.mark.parametrize("what", hostile.NOT_OBJECTS)
def test_no_json_objects(tmp_path, what):
    file = tmp_path / "a.json"
    file.write_bytes(hostile.NOT_OBJECTS[what])
    with pytest.raises(DataError, match=r"a\.json: damaged: ") as error:
        json_objects.read(file, DataError)
    assert len(str(error.value).splitlines()) == 1
    assert len(str(error.value)) < 500


def test_missing_and_large_files(tmp_path):
    file = tmp_path / "a.json"
    with pytest.raises(DataError, match=r"a\.json: cannot be read: No such file"):
        json_objects.read(file, DataError)
    with pytest.raises(DataError, match="cannot be read: Is a directory"):
        json_objects.read(tmp_path, DataError)
    file.write_text(json.dumps({"a": "x" * 100}))
    with pytest.raises(DataError, match=r"more than 50 bytes"):
        json_objects.read(file, DataError, max_bytes=50)
    assert json_objects.read(file, DataError) == {"a": "x" * 100}


def test_depth_and_brackets_in_text(tmp_path):
    assert json_objects.parse(json.dumps({"a": "[" * 1000}), "x", DataError)
    wide = {"a": [[1] for _ in range(1000)]}
    assert json_objects.parse(json.dumps(wide), "x", DataError) == wide
    edge = '{"a":' + "[" * (json_objects.MAX_DEPTH - 1) + "]" * (json_objects.MAX_DEPTH - 1) + "}"
    assert json_objects.parse(edge, "x", DataError)
    with pytest.raises(DataError, match="deeper than"):
        json_objects.parse('{"b":' + edge + "}", "x", DataError)


def test_typed_values():
    values = {"n": 3, "t": "x", "yes": True, "f": 1.5}
    assert json_objects.get(values, "n", float, "x", DataError) == 3.0
    assert json_objects.get(values, "none", int, "x", DataError, 4) == 4
    for key, kind in (("t", int), ("yes", int), ("f", int), ("n", str), ("none", int)):
        with pytest.raises(DataError, match=f"x: damaged: .*{key}"):
            json_objects.get(values, key, kind, "x", DataError)
    with pytest.raises(DataError, match="allowed is 0 to 2"):
        json_objects.size(values, "n", "x", DataError, high=2)
    for name in ("../a", "/a", "", "a/../../b", "a\\b", "a\0", None, 3, ["a"]):
        with pytest.raises(DataError):
            json_objects.inside(name, "x", DataError)
    assert json_objects.inside("a/b.json", "x", DataError) == "a/b.json"


@pytest.mark.parametrize("what", hostile.ARRAYS)
def test_no_arrays(tmp_path, what):
    file = tmp_path / "a.npy"
    file.write_bytes(hostile.ARRAYS[what])
    with pytest.raises(DataError, match=r"a\.npy: damaged: ") as error:
        arrays.read_npy(file, DataError)
    assert len(str(error.value).splitlines()) == 1


def test_no_archives_of_arrays_in_bounded_memory(tmp_path):
    file = tmp_path / "a.npz"
    for what, content in hostile.archives():
        file.write_bytes(content)
        tracemalloc.start()
        with pytest.raises(DataError, match=r"a\.npz: damaged: "):
            arrays.read_npz(file, DataError, "ids")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 32 << 20, what


@pytest.mark.parametrize(
    "array",
    [
        np.arange(12).reshape(3, 4),
        np.asfortranarray(np.arange(12.0).reshape(3, 4)),
        np.asarray(["a", "ü"]),
        np.zeros((0, 3), np.float32),
        np.asarray(7),
        np.asarray([True, False]),
    ],
)
def test_arrays_come_back(tmp_path, array):
    np.save(tmp_path / "a.npy", array)
    np.savez(tmp_path / "a.npz", x=array)
    np.savez_compressed(tmp_path / "b.npz", x=array)
    found = [arrays.read_npy(tmp_path / "a.npy", DataError)]
    found += [arrays.read_npz(tmp_path / f"{n}.npz", DataError, "x")["x"] for n in "ab"]
    for value in found:
        assert value.dtype == array.dtype
        np.testing.assert_array_equal(value, array)
        assert value.flags.writeable
