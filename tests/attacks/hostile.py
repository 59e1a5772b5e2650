"""Contents that a JSON file or an archive may have and no writer of this project makes."""

import io
import json
import zipfile

import numpy as np

DEEP = 200_000

NOT_OBJECTS = {
    "a list": b"[1, 2]",
    "a text": b'"x"',
    "null": b"null",
    "a number": b"7",
    "nothing": b"",
    "half": b'{"a": ',
    "no UTF-8": b'{"a": "\xff\xfe"}',
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "deep lists": b"[" * DEEP + b"]" * DEEP,
    "deep objects": b'{"a":' * DEEP + b"1" + b"}" * DEEP,
    "an object that is deep inside": b'{"a":' + b"[" * 500 + b"]" * 500 + b"}",
    "digits": b'{"a": ' + b"9" * 10_000 + b"}",
}

# values that stand where others belong
ODD = [None, True, "7", -1, 1.5, 10**30, [], {}, [[1]], {"a": 1}, "../../x", float("nan")]


def variants(content, keep=()):
    """(what, content) of a JSON object with each of its values replaced, and each key missing."""
    for key, value in content.items():
        if key in keep:
            continue
        yield f"without {key}", {k: v for k, v in content.items() if k != key}
        for odd in ODD:
            if type(odd) is not type(value):
                yield f"{key}={odd!r}", content | {key: odd}


def npy(shape="(3,)", dtype="<i8", data=b"\0" * 24, version=b"\x01\x00"):
    """An `.npy` file with this text as its declared shape."""
    text = f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY" + version + len(text).to_bytes(2, "little") + text + data


ARRAYS = {
    "nothing": b"",
    "text": b"hello",
    "a huge shape": npy("(1000000000000,)"),
    "a shape beyond 64 bits": npy(f"({10**30},)"),
    "a negative shape": npy("(-3,)"),
    "too short": npy("(4,)"),
    "too long": npy("(2,)"),
    "no shape": npy("'x'"),
    "deep brackets": npy("(" * 4000 + ")" * 4000),
    "objects": npy("(3,)", "|O"),
    "no bytes a value": npy("(1000000000,)", "<U0", b""),
    "another version": npy(version=b"\x09\x00"),
    "pickled": b"\x80\x04\x95" + b"\0" * 40,
}


def archive(members, packing=zipfile.ZIP_DEFLATED):
    """A zip of name -> bytes."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", packing) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return stream.getvalue()


def archives():
    """(what, bytes) of `.npz` files that are none."""
    stream = io.BytesIO()
    np.savez(stream, ids=np.arange(3), counts=np.arange(4))
    whole = stream.getvalue()
    yield "half", whole[: len(whole) // 2]
    yield "a bomb", archive({"ids.npy": npy("(8000000,)", "<i8", b"\0" * 64_000_000)})
    yield "an empty archive", archive({})
    for what, content in ARRAYS.items():
        yield what, archive(dict.fromkeys(("ids.npy", "counts.npy"), content))
        yield f"{what}, no archive", content


def dumps(content):
    return json.dumps(content).encode()
