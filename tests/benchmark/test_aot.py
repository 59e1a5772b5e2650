"""Compiling for a TPU slice on a machine without one: it fits, and no table travels."""

import importlib.util
import json

import jax
import pytest

from jaxrec.benchmark import aot, config_file, roofline
from jaxrec.config import MeshConfig
from jaxrec.errors import ConfigError
from jaxrec.layout import SegmentLayout
from jaxrec.model import recommender
from jaxrec.runtime import mesh as mesh_lib
from tests import libtpu

RECIPE = """
from configs import pod_hllm, pod_hstu

def get_config(name="pod_hstu", batch=16):
    config = {"pod_hstu": pod_hstu, "pod_hllm": pod_hllm}[name.split("+")[0]].get_config()
    if name == "pod_hllm":
        config.model.llama.kv_heads, config.model.llama.ffn_width = 1, 512
        config.mesh.fsdp, config.mesh.model = 4, 4
    if name == "pod_hstu+hash":
        config.model.item_hash, config.model.item_rows = "hash", 2**16 - 1
    config.layout.segment_size, config.layout.tokens, config.layout.max_segments = 8, 2, 2
    config.model.width, config.model.item_width, config.model.layers = 128, 64, 2
    config.model.heads = 2
    if name == "pod_hllm":
        config.model.item_width = 128
    config.loss.negatives = 128
    config.train.batch_size = config.eval.batch_size = int(batch)
    config.eval.chunk = 4096
    return config
"""


def report(tmp_path, name, items):
    """What the command says of a small version of a recipe on 16 chips."""
    recipe, output = tmp_path / "recipe.py", tmp_path / "aot.json"
    recipe.write_text(RECIPE)
    printed = libtpu.run(
        "jaxrec.benchmark.aot",
        "--topology=v5e:4x4",
        f"--config={recipe}:{name}",
        f"--items={items}",
        f"--output={output}",
    )
    assert "train: fits" in printed
    result = json.loads(output.read_text())
    assert [row["function"] for row in result["rows"]] == ["train", "compress", "score"]
    return result


@pytest.mark.slow
@libtpu.needed
def test_rows_that_items_share_are_all_that_a_chip_holds(tmp_path):
    items = 2**24
    result = report(tmp_path, "pod_hstu+hash", items)
    assert result["items"] == items
    table = 2**16 * 64 * 4
    for row in result["rows"]:
        assert row["memory"]["total"] < items * 64 * 4 // 16  # of a table with a row per item
        assert table // 16 < row["memory"]["arguments"]
    for row in result["rows"][:2]:
        for one in row["largest_collectives"]:
            assert all(2**16 not in shape for shape in one["shapes"]), one


@pytest.mark.slow
@libtpu.needed
@pytest.mark.parametrize(("name", "width", "model"), [("pod_hstu", 64, 16), ("pod_hllm", 128, 4)])
def test_the_item_table_stays_where_it_is(name, width, model, tmp_path):
    items = 2**20 - 1
    result = report(tmp_path, name, items)
    part = (items + 1) * width * 4 // model  # of the table, on each chip
    for row in result["rows"]:
        assert row["memory"]["arguments"] >= part
        for one in row["largest_collectives"]:
            assert all(items + 1 not in shape for shape in one["shapes"]), one
            assert one["bytes"] < part, one
    train = result["rows"][0]
    assert train["collectives"]["all-reduce"]["bytes"] > 0
    assert train["dot_flops"] > 0.9 * train["flops_per_chip"]
    assert 0 < train["roofline"]["share_of_peak"] < 1
    assert train["heaviest_operations"][0]["bytes"] > 0
    assert train["largest_buffers"][0]["bytes"] > 0
    assert set(train["other_chips"]) == {"note", "v4", "v5p", "v6e", "h100", "h200"}


@pytest.mark.parametrize("name", ["pod_hstu", "pod_hstu+hash"])
def test_every_function_lowers_on_devices_that_are_there(name, tmp_path):
    """Without libtpu: the traced programs fit the mesh of the tests' devices."""
    recipe = tmp_path / "recipe.py"
    recipe.write_text(RECIPE)
    config = config_file.load(f"{recipe}:{name}")
    config.mesh = MeshConfig(data=2, fsdp=1, model=4)
    mesh = mesh_lib.make_mesh(config.mesh, jax.devices())
    layout = SegmentLayout.from_config(config.layout)
    model = recommender.build(config.model, config.loss, layout, 4095)
    for function, lower in aot.LOWER.items():
        with jax.set_mesh(mesh):
            text = lower(config, model, mesh).as_text()
        assert "sharding" in text, function
        assert aot.flops(function, config, model, mesh) > 0


@pytest.mark.parametrize(
    ("topology", "words"), [("v9:1", r"v9:1.*allowed are v4, v5e, v5p, v6e"), ("", "allowed are")]
)
def test_unknown_chips_are_refused(topology, words):
    with pytest.raises(ConfigError, match=words):
        aot.devices_of(topology)


def test_without_the_compiler_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'jaxrec\[tpu-aot\]'"):
        aot.devices_of("v5e:4x4")


def test_a_recipe_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match=r"nothing.py: not a Python file"):
        config_file.load(str(tmp_path / "nothing.py"))


def test_a_batch_that_leaves_no_whole_number_of_users(tmp_path, monkeypatch, capsys):
    recipe = tmp_path / "recipe.py"
    recipe.write_text(
        RECIPE.replace(
            "config.train.batch_size = config", "config.train.batch_size = 32\n    config"
        )
    )
    monkeypatch.setattr(aot, "devices_of", lambda topology: ("v5e", jax.devices()))
    monkeypatch.setattr(
        "sys.argv", ["aot", "--topology=v5e:4x4", "--batch=1", f"--config={recipe}"]
    )
    with pytest.raises(SystemExit) as ended:
        aot.main()
    said = f"{ended.value.code} {capsys.readouterr().err}"
    assert "--batch=1: eval.batch_size=16 per train.batch_size=32 is no whole number" in said


PLAN = {
    "dot_flops": 1.5 * 197e12,
    "memory_traffic": 819e9,
    "collectives": {"all-reduce": {"count": 1, "bytes": 200e9, "sent": 400e9}},
}


def test_roofline_names_what_decides():
    times = roofline.roofline(197e12 * 4, PLAN, roofline.CHIPS["v5e"], devices=4)
    assert (times["compute_s"], times["dots_s"], times["memory_s"]) == (1.0, 1.5, 1.0)
    assert (times["network_s"], times["step_s"], times["bound"]) == (2.0, 2.0, "network")
    assert times["share_of_peak"] == 0.5


def test_other_chips_have_the_same_counts_at_their_peaks():
    others = roofline.on_other_chips("v5e", 197e12 * 4, PLAN, devices=4)
    assert set(others) == {"v4", "v5p", "v6e", "h100", "h200"}
    assert others["h200"]["memory_s"] == pytest.approx(819 / 4800)
    assert others["h100"]["compute_s"] == others["h200"]["compute_s"] == pytest.approx(197 / 989)
