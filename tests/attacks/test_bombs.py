"""Small event files that unpack to much: refused with the file's name, in bounded memory."""

import gzip
import io
import itertools
import subprocess
import sys

import numpy as np
import polars as pl
import pytest

from jaxrec.config import DataConfig
from jaxrec.data import prepare
from jaxrec.data.datasets import amazon_reviews, line_bounds
from jaxrec.errors import DataError
from jaxrec.serving import event_files
from jaxrec.untrusted import lines, zstd

HEADER = b"user_id,item_id,timestamp\n"
ROWS = b"".join(b"%d,%d,%d\n" % (i % 3, i % 5, i + 5) for i in range(3000))
SIZE = 320 << 20  # of what a bomb unpacks to


def frame(blocks, head=b"\x00\x88"):
    """A Zstandard frame; blocks: (type, content, size); head: descriptor and what follows it."""
    body = bytearray()
    for number, (kind, content, size) in enumerate(blocks):
        word = size << 3 | kind << 1 | (number == len(blocks) - 1)
        body += word.to_bytes(3, "little") + content
    return (0xFD2FB528).to_bytes(4, "little") + head + body


def plain(content):
    parts = [content[i : i + 9000] for i in range(0, len(content), 9000)]
    return [(0, part, len(part)) for part in parts]


def repeated(byte, size):
    return [(1, byte, zstd.MAX_BLOCK)] * (size // zstd.MAX_BLOCK)


def bomb(name):
    """Bytes of a file that unpacks to one line, or to many rows."""
    if name.endswith(".zst"):
        return frame([*plain(HEADER + b"1,2,"), *repeated(b"3", SIZE)])
    members = 40
    rows = gzip.compress(b"1,2,3\n" * (SIZE // 6 // members))
    return gzip.compress(HEADER) + rows * members


def table(path):
    return DataConfig(path=str(path), dataset="table", min_item_events=1, min_user_events=1)


@pytest.mark.parametrize("name", ["e.csv.zst", "e.tsv.zst", "e.jsonl.zst", "e.csv.gz"])
def test_packed_bombs(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(bomb(name))
    assert path.stat().st_size < 2 << 20
    with pytest.raises(DataError, match=rf"{name}: .*declares [\d,]+ bytes in [\d,]+ packed"):
        prepare(table(path), tmp_path / "data")


LINE = 9 << 20
PACKERS = {
    "": bytes,
    ".gz": lambda content: gzip.compress(content, 1),
    ".zst": lambda content: frame(plain(content)),
}


@pytest.mark.parametrize("packing", PACKERS)
@pytest.mark.parametrize("name", ["e.csv", "e.tsv", "e.jsonl"])
def test_one_line_of_a_plausible_size(tmp_path, name, packing):
    random = np.random.default_rng(0).integers(97, 123, LINE, np.uint8).tobytes()
    rows = HEADER + b"1,2,3\n" * 999
    path = tmp_path / f"{name}{packing}"
    for before, number in ((rows, 1001), (b"", 1)):
        path.write_bytes(PACKERS[packing](before + random + b"\n1,2,4\n"))
        with pytest.raises(DataError, match=rf"{path.name}, line {number}: longer than 8 MiB"):
            prepare(table(path), tmp_path / "data")


def test_the_longest_line(tmp_path, monkeypatch):
    """Where lines and blocks begin does not matter."""
    monkeypatch.setattr(line_bounds, "BLOCK", 16)
    monkeypatch.setattr(line_bounds, "MAX_LINE", 16)
    path = tmp_path / "e.csv"
    for before in range(20):
        for size, end in itertools.product((15, 16, 17), (b"", b"\n", b"\n\nabc\n")):
            path.write_bytes(b"\n" * before + b"x" * size + end)
            if size < 17:
                assert line_bounds.rows_at_once(path, 100) <= 100
                continue
            with pytest.raises(DataError, match=rf"e\.csv, line {before + 1}: longer"):
                line_bounds.rows_at_once(path, 100)


def test_lines_that_are_ids_or_items(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "MAX_LINE", 16)
    path = tmp_path / "ids.txt"
    path.write_text(f"12\n{'0' * 15}1\n13\n{'0' * 16}1\n")
    with pytest.raises(DataError, match=r"ids\.txt, line 4: longer"):
        event_files.read_ids(str(path), "--users", "user_id", False)
    monkeypatch.setattr("sys.stdin", io.StringIO(path.read_text()))
    with pytest.raises(DataError, match=r"standard input, line 4: longer"):
        event_files.read_ids("-", "--users", "user_id", True)
    items = tmp_path / "meta.json.gz"
    items.write_bytes(gzip.compress(b"{'asin': 'a'}\n{'asin': 'abcde'}\n"))
    with pytest.raises(DataError, match=r"meta\.json\.gz, line 2: longer"):
        list(amazon_reviews._literals(items, "asin", ("title",)))


def test_many_frames_are_one_bomb(tmp_path):
    path = tmp_path / "e.csv.zst"
    small = frame(repeated(b"3", 4 * zstd.MAX_BLOCK))
    path.write_bytes(frame(plain(HEADER + ROWS)) + small * 600)
    with pytest.raises(DataError, match=r"declares"):
        prepare(table(path), tmp_path / "data")


def test_plain_frames_are_read(tmp_path):
    path, expected = tmp_path / "e.csv.zst", tmp_path / "e.csv"
    expected.write_bytes(HEADER + ROWS)
    skipped = (0x184D2A50).to_bytes(4, "little") + (3).to_bytes(4, "little") + b"abc"
    for content in (skipped + frame(plain(HEADER + ROWS)), frame(plain(HEADER + ROWS))):
        path.write_bytes(content)
        assert zstd.most_bytes(path) == len(HEADER + ROWS)
    found, whole = (prepare(table(p), tmp_path / p.name[-3:]) for p in (path, expected))
    np.testing.assert_array_equal(found.histories.items, whole.histories.items)


def test_frames_of_a_library_are_bounded(tmp_path):
    path = tmp_path / "e.csv.zst"
    frame_of_rows = pl.read_csv(HEADER + ROWS)
    frame_of_rows.lazy().sink_csv(path, compression="zstd")
    assert len(HEADER + ROWS) <= zstd.most_bytes(path) <= len(HEADER + ROWS) + zstd.MAX_BLOCK
    assert len(prepare(table(path), tmp_path / "data").histories.items) == 3000


@pytest.mark.parametrize(
    "content",
    [
        b"hello, no frame",
        frame([(3, b"", 0)]),
        frame([(0, b"abc", 1 << 20)]),
        frame(plain(HEADER + ROWS))[:-5],
        frame(plain(HEADER))[:5],
        b"\x28\xb5\x2f\xfd",
    ],
)
def test_damaged_frames(tmp_path, content):
    path = tmp_path / "e.csv.zst"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"e\.csv\.zst: cannot be read"):
        prepare(table(path), tmp_path / "data")


def test_parquet_bombs(tmp_path):
    rows = 4_000_000  # 96 MB of three columns in some KB
    path = tmp_path / "e.parquet"
    columns = {"user_id": 1, "item_id": 2, "timestamp": 1_700_000_000}
    frame_of_rows = pl.select(pl.repeat(0, rows).alias("i")).select(
        **{name: pl.lit(value, pl.Int64) + pl.col("i") for name, value in columns.items()}
    )
    frame_of_rows.write_parquet(path)
    assert path.stat().st_size < 100_000
    with pytest.raises(DataError, match=r"e\.parquet: .*declares .*no events"):
        prepare(table(path), tmp_path / "data")


CODE = """
import sys
from jaxrec.errors import DataError
from tests.attacks import test_bombs as t
import pathlib
def peak():
    text = pathlib.Path("/proc/self/status").read_text()
    return int(text.split("VmHWM:")[1].split()[0]) << 10
folder, small, *bombs = sys.argv[1:]
t.prepare(t.table(small), pathlib.Path(folder))
before = peak()
for bomb in bombs:
    try:
        t.prepare(t.table(bomb), pathlib.Path(folder))
    except DataError:
        print(peak() - before)
"""


def test_memory_is_bounded(tmp_path):
    """Bombs, and one line of a plausible size for its file, which readers of lines would hold."""
    small = tmp_path / "small.csv"
    small.write_bytes(HEADER + ROWS)
    random = np.random.default_rng(0).integers(97, 123, 1 << 20, np.uint8).tobytes()
    line = {".gz": gzip.compress(random, 1), ".zst": frame(plain(random))}
    paths = []
    for end, part in line.items():
        paths += [tmp_path / f"bomb.csv{end}", tmp_path / f"line.csv{end}"]
        paths[-2].write_bytes(bomb(f"e.csv{end}"))
        paths[-1].write_bytes(part * (SIZE >> 20))
    argv = [sys.executable, "-c", CODE, str(tmp_path / "data"), str(small), *map(str, paths)]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    growth = [int(line) for line in done.stdout.split()]
    assert len(growth) == len(paths)
    assert max(growth) < SIZE // 4
