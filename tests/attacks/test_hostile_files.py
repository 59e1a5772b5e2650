"""Files of a run, a store, prepared data and models that hold something else: one named error."""

import json
import zlib

import numpy as np
import pytest

from jaxrec import config as config_lib
from jaxrec.config import Config, DataConfig
from jaxrec.data import prepare
from jaxrec.data.catalog import Catalog
from jaxrec.data.digests import read_digest
from jaxrec.errors import CheckpointError, DataError, JaxrecError, WeightsError, WorkdirError
from jaxrec.interop import gguf, huggingface, llama_config
from jaxrec.runtime import checkpoint, environment, metrics_writer, workdir
from jaxrec.runtime.checkpoint import integrity
from jaxrec.serving import snapshot_record
from jaxrec.state_store.metadata import Binding, Metadata, parse_metadata, read_json
from jaxrec.state_store.places import open_root
from jaxrec.state_store.row_format import RowSpec
from tests.attacks import hostile

JSON = hostile.NOT_OBJECTS.values()


def refused(call, *words):
    """Calls; the error is the project's, one line, and holds the words."""
    with pytest.raises(JaxrecError) as error:
        call()
    text = str(error.value)
    assert len(text.splitlines()) == 1, text
    assert all(word in text for word in words), text


@pytest.mark.parametrize("name", ["config.json", "dataset.json", "run.json", "environment.json"])
def test_files_of_a_run(tmp_path, name):
    config, digests = Config(), {"data": "a", "vocabulary": "b"}
    workdir.claim(tmp_path, config, digests)
    environment.record(tmp_path, 0)
    calls = {
        "config.json": lambda: workdir.load_config(tmp_path),
        "dataset.json": lambda: workdir.check_data(tmp_path, digests),
        "run.json": lambda: workdir.run_id(tmp_path),
        "environment.json": lambda: environment.record(tmp_path, 1),
    }
    for content in JSON:
        if name == "environment.json" and content.startswith(b"[]"):
            continue
        (tmp_path / name).write_bytes(content)
        refused(calls[name], name)


def test_values_of_a_configuration(tmp_path):
    for key, values in (
        ("width", ["64", 10**12, -1, 1.5, None, [64], {"a": 1}, True]),
        ("layers", [10**9, "2"]),
        ("repeat_half_lives", ["x", ["x"], [[1.0]], {"a": 1}, 3]),
    ):
        for value in values:
            content = json.loads(config_lib.to_json(Config()))
            content["model"][key] = value
            (tmp_path / "config.json").write_bytes(hostile.dumps(content))
            refused(lambda: workdir.load_config(tmp_path), "config.json")


def test_an_older_checkpoint_is_tried(tmp_path):
    folder, tree = tmp_path / "checkpoints", {"x": np.arange(4, dtype=np.float32)}
    for step in (1, 2):
        checkpoint.save(folder, step, {"params": tree}, {})
    record = folder / "2" / integrity.RECORD
    written = json.loads(record.read_bytes())
    contents = [*JSON, b'{"record": [], "digest": 3}', b'{"record": {"a": 1}}']
    for _, values in hostile.variants(written["record"], keep=("run", "format", "best", "meta")):
        digest = integrity._json_digest(values)
        contents.append(hostile.dumps({"record": values, "digest": digest}))
    outside = written["record"] | {"files": {"../../x": [1, "a"]}}
    contents.append(hostile.dumps({"record": outside, "digest": integrity._json_digest(outside)}))
    for content in contents:
        record.write_bytes(content)
        refused(lambda: integrity.read_record(folder, 2), "checkpoint 2", "corrupt")
    assert checkpoint.restore_latest(folder, {"params": tree}).step == 1
    with pytest.raises(CheckpointError, match="no checkpoint 2"):
        checkpoint.restore(folder, 2, {"params": tree})


def test_lines_of_metrics_are_counted_and_kept(tmp_path):
    file = tmp_path / "metrics.jsonl"
    lines = [*(c for c in JSON if c), b'{"step": "1"}', b'{"step": 1, "loss": "x"}', b"x" * 2**21]
    file.write_bytes(b'{"step": 1, "loss": 2.0}\n' + b"".join(line + b"\n" for line in lines))
    assert metrics_writer.rewind(file, 1, 1) == len(lines)
    assert file.read_bytes() == b'{"step": 1, "loss": 2.0}\n'
    assert (tmp_path / "metrics.jsonl.damaged").read_bytes().split(b"\n")[:-1] == lines


def test_a_catalog(tmp_path):
    for what, content in hostile.archives():
        (tmp_path / "catalog.npz").write_bytes(content)
        with pytest.raises(WorkdirError, match=r"catalog\.npz: damaged.*[Rr]emove it"):
            Catalog.load(tmp_path)
        assert what


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    rows = "".join(f"{i % 3},{i % 5},{i + 5}\n" for i in range(30))
    (folder / "events.csv").write_text("user_id,item_id,timestamp\n" + rows)
    config = DataConfig(
        path=str(folder / "events.csv"), dataset="table", min_item_events=1, min_user_events=1
    )
    return config, folder, prepare(config, folder).folder


def test_the_record_of_prepared_data(table):
    config, root, folder = table
    marker = folder / "complete.json"
    whole = marker.read_bytes()
    content = json.loads(whole)["content"]
    contents = list(JSON)
    changed = [c for _, c in hostile.variants(content, keep=("settings",))]
    changed += [content | {"report": report} for _, report in hostile.variants(content["report"])]
    changed += [content | {"files": {name: [1, "x"]}} for name in ("../x", "/etc/passwd", "")]
    changed += [content | {"files": {"users.npy": entry}} for entry in ([1], "x", [True, "a"])]
    # an id of another kind is an equal number
    contents += [
        hostile.dumps({"digest": config_lib.digest(c), "content": c})
        for c in changed
        if type(c.get("time_origin")) is not float
    ]
    try:
        for text in contents:
            marker.write_bytes(text)
            refused(lambda: prepare(config, root), "Remove the folder")
    finally:
        marker.write_bytes(whole)


@pytest.mark.parametrize("name", ["vocabulary.json", "offsets.npy", "users.npy"])
def test_prepared_files_with_digests_that_fit(table, name):
    config, root, folder = table
    marker, file = folder / "complete.json", folder / name
    kept = {path: path.read_bytes() for path in (marker, file)}
    contents = list(hostile.ARRAYS.values()) if name.endswith(".npy") else list(JSON)
    if name == "offsets.npy":
        contents += [
            hostile.npy("(4,)", "<i8", np.asarray(x).tobytes())
            for x in ([0, 20, 10, 30], [1, 10, 20, 30], [0, 10, 20, 31])
        ]
    if name == "vocabulary.json":
        ids = [["0", 1, 2, 3, 4], [0, 1, 2, 3, True], [0, 1, 2, 3], [0, 1, 2, 3, 10**30], [0] * 5]
        contents += [hostile.dumps({"kind": "int", "ids": i}) for i in (*ids, "01234", {})]
        contents += [hostile.dumps({"kind": kind, "ids": [0, 1, 2, 3, 4]}) for kind in ("x", 3)]
    try:
        for text in contents:
            file.write_bytes(text)
            content = json.loads(kept[marker])["content"]
            content["files"][name] = [len(text), read_digest(file)]
            record = {"digest": config_lib.digest(content), "content": content}
            marker.write_bytes(hostile.dumps(record))
            refused(lambda: prepare(config, root), name, "Remove the folder")
    finally:
        for path, whole in kept.items():
            path.write_bytes(whole)


def test_files_of_a_store(tmp_path):
    spec = RowSpec.of({"x": np.zeros((1, 3), np.float32)})
    content = Metadata("a" * 32, 2, Binding("a", "b", "c", "int8"), spec).to_json()
    root = open_root(tmp_path)
    contents = list(JSON)
    contents += [hostile.dumps({"crc32": crc, "content": content}) for crc in (None, "x", 3, [])]
    contents += [
        hostile.dumps({"crc32": zlib.crc32(json.dumps(c).encode()), "content": c})
        for c in ([1], "x", None)
    ]
    for text in contents:
        (tmp_path / "store.json").write_bytes(text)
        refused(lambda: read_json(root, "store.json"), "store.json: damaged")
    changed = [c for _, c in hostile.variants(content)]
    changed += [content | {"binding": b} for _, b in hostile.variants(content["binding"])]
    rows = [["x", [10**12], "float32"], ["x", ["3"], "float32"], ["x", [3]], ["x", [3], []], 7]
    changed += [content | {"row": [row]} for row in rows]
    for values in [*changed, content | {"num_shards": 10**9}]:
        refused(lambda v=values: parse_metadata(v, "store.json"), "store.json")


def test_the_record_of_a_snapshot(tmp_path):
    from jaxrec.state_store.metadata import write_json

    spec = RowSpec.of({"x": np.zeros((1, 3), np.float32)})
    part = snapshot_record.Part("00000", 0, 2, "00", "ff", 1, 2)
    record = snapshot_record.Record(
        "a", 1, 2, Metadata("b", 1, Binding("a", "b", "c", "int8"), spec), [part]
    )
    root = open_root(tmp_path)
    write_json(root, snapshot_record.RECORD, record.to_json())
    assert snapshot_record.read(tmp_path) == record
    whole = record.to_json()
    changed = [c for _, c in hostile.variants(whole)]
    changed += [whole | {"parts": [p]} for _, p in hostile.variants(whole["parts"][0])]
    changed += [whole | {"parts": [whole["parts"][0] | {"name": "../../other"}]}]
    for content in changed:
        write_json(root, snapshot_record.RECORD, content)
        refused(lambda: snapshot_record.read(tmp_path), "record.json")


LLAMA = {
    "model_type": "llama",
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
    "vocab_size": 10,
    "rms_norm_eps": 1e-5,
}


def test_configurations_of_language_models(tmp_path):
    file = tmp_path / "config.json"
    file.write_bytes(hostile.dumps(LLAMA))
    assert llama_config.read_config(tmp_path).vocabulary == 10
    contents = list(JSON)
    changed = [c for w, c in hostile.variants(LLAMA, keep=("rms_norm_eps",))]
    changed += [LLAMA | {"num_hidden_layers": 10**9}, LLAMA | {"vocab_size": 10**15}]
    changed += [LLAMA | {"rms_norm_eps": x} for x in ("x", None, [], True)]
    changed += [LLAMA | {"rope_scaling": x} for x in ("x", [1], 3, {"rope_type": "linear"})]
    changed += [LLAMA | {"rope_scaling": {"rope_type": "linear", "factor": "x"}}]
    changed += [LLAMA | {"rope_theta": []}, LLAMA | {"sliding_window": "x"}]
    changed += [LLAMA | {"hidden_act": []}, LLAMA | {"attention_bias": {}}]
    for text in contents + [hostile.dumps(c) for c in changed]:
        file.write_bytes(text)
        refused(lambda: llama_config.read_config(tmp_path), "config.json")


def test_an_index_of_weights_stays_in_its_folder(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "other.safetensors").write_bytes(b"x")
    index = folder / huggingface.INDEX
    names = ["../other.safetensors", str(tmp_path / "other.safetensors"), "", 3, None, ["a"], {}]
    contents = [*JSON, b"{}", b'{"weight_map": []}', b'{"weight_map": "x"}', b'{"weight_map": {}}']
    contents += [hostile.dumps({"weight_map": {"a": name}}) for name in names]
    for text in contents:
        index.write_bytes(text)
        refused(lambda: huggingface.Reader(folder), huggingface.INDEX)
    index.unlink()
    for text in (b"", b"x" * 100, (2**60).to_bytes(8, "little") + b"{}", b"\x08" + b"\0" * 7):
        (folder / huggingface.WEIGHTS).write_bytes(text)
        with pytest.raises(WeightsError, match=huggingface.WEIGHTS):
            huggingface.Reader(folder)


def gguf_bytes(tensors=0, fields=0, body=b""):
    head = b"GGUF" + (3).to_bytes(4, "little")
    return head + tensors.to_bytes(8, "little") + fields.to_bytes(8, "little") + body


def test_gguf_files(tmp_path):
    pytest.importorskip("gguf")
    key = (1).to_bytes(8, "little") + b"a"
    text = (8).to_bytes(4, "little")  # type of a text
    nested = (9).to_bytes(4, "little") + (1).to_bytes(8, "little")
    bodies = [
        b"",
        b"GGUF",
        b"\0" * 64,
        gguf_bytes(2**60, 2**60),
        gguf_bytes(0, 1, (2**62).to_bytes(8, "little") + b"abc"),
        gguf_bytes(0, 1, key + text + (2**63).to_bytes(8, "little")),
        gguf_bytes(0, 1, key + text + (2).to_bytes(8, "little") + b"\xff\xfe"),
        gguf_bytes(0, 1, key + (9).to_bytes(4, "little") + nested * 5_000),
        gguf_bytes(0, 1, key + (9).to_bytes(4, "little") + text + (2**60).to_bytes(8, "little")),
        gguf_bytes(0, 1, key + (99).to_bytes(4, "little") + b"\0" * 8),
        gguf_bytes(),
    ]
    for body in bodies:
        (tmp_path / "a.gguf").write_bytes(body)
        refused(lambda: gguf.convert(str(tmp_path / "a.gguf"), str(tmp_path / "out")), "a.gguf")


RATINGS = b"userId,movieId,rating,timestamp\n1,10,4.0,100\n1,11,4.0,101\n"
MOVIES = b"movieId,title,genres\n10,a,b\n11,c,d\n"


def test_movielens_zips(tmp_path):
    path, outside = tmp_path / "ml.zip", tmp_path / "ratings.csv"
    config = DataConfig(
        path=str(path), dataset="movielens", variant="25m", min_item_events=1, min_user_events=1
    )
    members = {"../../ratings.csv": RATINGS, "/movies.csv": MOVIES}
    path.write_bytes(hostile.archive(members))
    assert prepare(config, tmp_path / "data").num_items == 2
    assert not outside.exists()
    bomb = b"\0" * (96 << 20)
    for content in (
        hostile.archive({"ml/ratings.csv": bomb, "ml/movies.csv": MOVIES}),
        hostile.archive({"ml/ratings.csv": RATINGS, "ml/movies.csv": bomb}),
        b"PK\x03\x04" + b"\0" * 100,
        b"",
    ):
        path.write_bytes(content)
        refused(lambda: prepare(config, tmp_path / "data"), "ml.zip")


@pytest.mark.parametrize("name", ["events.csv", "events.tsv", "events.jsonl", "events.csv.gz"])
def test_one_endless_line(tmp_path, name):
    import gzip

    content = b"user_id,item_id,timestamp\n1,2," + b"3" * (20 << 20)
    path = tmp_path / name
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    config = DataConfig(path=str(path), dataset="table")
    refused(lambda: prepare(config, tmp_path / "data"), name)
    with pytest.raises(DataError, match=r"line 2: longer than 8 MiB|declares"):
        prepare(config, tmp_path / "data")
