"""Checkpoints: exact, verified, never damaged by what comes later."""

import hashlib
import json
import logging
import os
import pathlib
import random
import resource
import shutil
import signal
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrec.config import Config, MeshConfig
from jaxrec.errors import CheckpointError, StructureError, WorkdirError
from jaxrec.runtime import checkpoint, leaves, workdir
from jaxrec.runtime import mesh as mesh_lib
from jaxrec.runtime.checkpoint import integrity


def has_item_rows(path):
    return path.rpartition("/")[2] == "item_embedding"


def make_trees(seed=0, rows=16, scale=1.0):
    rng = np.random.default_rng(seed)
    params = {
        "item_embedding": jnp.asarray(rng.normal(size=(rows, 8)) * scale, jnp.float32),
        "encoder": {
            "kernel": jnp.asarray(rng.normal(size=(8, 8)), jnp.bfloat16),
            "step": jnp.int32(seed),
        },
    }
    return {"params": params, "opt_state": optax.adamw(1e-3).init(params)}


def assert_equal(a, b):
    flat_a, flat_b = leaves.flatten(a), leaves.flatten(b)
    assert flat_a.keys() == flat_b.keys()
    for name in flat_a:
        assert flat_a[name].dtype == flat_b[name].dtype
        np.testing.assert_array_equal(flat_a[name], flat_b[name], err_msg=name)


def run_of(folder, step):
    """A run's folder with one checkpoint; returns its identity."""
    workdir.claim(folder, Config(), {})
    checkpoint.save(folder / "checkpoints", step, make_trees(step), {})
    return workdir.run_id(folder)


def test_checkpoints_of_another_run_are_refused(tmp_path):
    """Another seed's run has the same shapes, so that only the identity tells."""
    one, two = run_of(tmp_path / "one", 4), run_of(tmp_path / "two", 8)
    assert one != two
    here = tmp_path / "one" / "checkpoints"
    shutil.copytree(tmp_path / "two" / "checkpoints" / "8", here / "8")
    like = make_trees()
    refused = rf"checkpoint 8 in .*one/checkpoints belongs to run {two}, the folder to run {one}"
    for read in (
        lambda: checkpoint.restore(here, 8, like),
        lambda: checkpoint.restore_latest(here, like),
        lambda: checkpoint.load_params(here, like["params"], "latest"),
        lambda: checkpoint.load_params(here, like["params"]),
    ):
        with pytest.raises(StructureError, match=refused):
            read()
    assert checkpoint.steps(here) == [4, 8]  # it is not set aside as a corrupt one
    shutil.rmtree(here / "8")
    assert checkpoint.restore_latest(here, like).step == 4


def test_checkpoints_without_identity_do_not_mix_with_others(tmp_path):
    run_of(tmp_path / "run", 4)
    (tmp_path / "run" / "run.json").rename(tmp_path / "run.json")
    here = tmp_path / "run" / "checkpoints"
    with pytest.raises(StructureError, match="the folder to run without an identity"):
        checkpoint.restore_latest(here, make_trees())
    checkpoint.save(here, 8, make_trees(8), {})  # as before runs had one
    assert checkpoint.restore(here, 8, make_trees()).step == 8
    (tmp_path / "run.json").rename(tmp_path / "run" / "run.json")
    with pytest.raises(StructureError, match="belongs to run without an identity"):
        checkpoint.restore(here, 8, make_trees())
    (tmp_path / "run" / "run.json").write_text('{"id": 3}')
    with pytest.raises(WorkdirError, match=r"run\.json: damaged: id=3: a text is needed"):
        checkpoint.restore(here, 4, make_trees())


def payload_files(folder, step):
    return sorted(p for p in (folder / str(step)).rglob("*") if p.is_file() and p.stat().st_size)


def flip(path, position, bit):
    data = bytearray(path.read_bytes())
    data[position] ^= 1 << bit
    path.write_bytes(bytes(data))


def test_round_trip(tmp_path):
    trees = make_trees(3)
    meta = {"best": 0.1 + 0.2, "window": [{"loss": float(np.float32(1 / 3))}], "note": None}
    checkpoint.save(tmp_path, 7, trees, meta)
    restored = checkpoint.restore(tmp_path, 7, trees)
    assert restored.step == 7
    assert restored.meta == meta
    assert_equal(restored.trees, trees)
    assert type(restored.trees["opt_state"]) is type(trees["opt_state"])


def test_a_relative_folder(tmp_path, monkeypatch):
    """As in `--workdir=runs/x`; Orbax reads absolute paths alone."""
    monkeypatch.chdir(tmp_path)
    trees = make_trees(3)
    checkpoint.save(pathlib.Path("run/checkpoints"), 7, trees, {})
    restored = checkpoint.restore(pathlib.Path("run/checkpoints"), 7, trees)
    assert_equal(restored.trees, trees)


def test_restores_onto_any_mesh(tmp_path):
    trees = make_trees()
    meshes = [
        mesh_lib.make_mesh(MeshConfig(data=d, model=m)) for d, m in [(8, 1), (2, 4), (4, 2), (1, 1)]
    ]
    for step, mesh in enumerate(meshes):
        placed = jax.device_put(trees, mesh_lib.shardings(mesh, trees, has_item_rows))
        checkpoint.save(tmp_path, step, placed, {})
    for step in range(len(meshes)):
        for mesh in meshes:
            like = mesh_lib.abstract(mesh, lambda: trees, has_item_rows)
            restored = checkpoint.restore(tmp_path, step, like).trees
            assert_equal(restored, trees)
            assert jax.tree.map(lambda x: x.sharding, restored) == jax.tree.map(
                lambda x: x.sharding, like
            )


def test_keeps_the_latest_and_the_best_each_of_them_names(tmp_path):
    for step, best in [(1, 1), (2, 1), (3, 3), (4, 3), (5, 3), (6, 6)]:
        checkpoint.save(tmp_path, step, {"params": {"x": jnp.float32(step)}}, {}, best=best)
        checkpoint.retain(tmp_path, 2)
    assert checkpoint.steps(tmp_path) == [3, 5, 6]  # 3 is the best that 5 knows
    assert checkpoint.best_step(tmp_path) == 6
    checkpoint.save(tmp_path, 7, {"params": {"x": jnp.float32(7)}}, {}, best=6)
    checkpoint.retain(tmp_path, 2)
    assert checkpoint.steps(tmp_path) == [6, 7]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["6", "7"]


def test_a_half_written_checkpoint_is_ignored_and_cleaned(tmp_path):
    trees = make_trees()
    checkpoint.save(tmp_path, 1, trees, {})
    shutil.copytree(tmp_path / "1", tmp_path / "2.new.orbax-checkpoint-tmp")  # in Orbax
    shutil.copytree(tmp_path / "1", tmp_path / "3.new")  # before the record
    os.remove(tmp_path / "3.new" / "record.json")
    assert checkpoint.steps(tmp_path) == [1]
    restored = checkpoint.restore_latest(tmp_path, trees)
    assert restored is not None
    assert restored.step == 1
    checkpoint.clean(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["1"]
    checkpoint.save(tmp_path, 2, trees, {})
    assert checkpoint.steps(tmp_path) == [1, 2]


def test_no_single_bit_flip_goes_unnoticed(tmp_path):
    """Any flipped bit of any file: the values are right, or CheckpointError."""
    trees = make_trees()
    checkpoint.save(tmp_path, 4, trees, {"seed": 1})
    rng = random.Random(0)
    files = payload_files(tmp_path, 4)
    raised = 0
    for _ in range(60):
        path = rng.choice(files)
        original = path.read_bytes()
        flip(path, rng.randrange(len(original)), rng.randrange(8))
        try:
            restored = checkpoint.restore(tmp_path, 4, trees)
        except CheckpointError as error:
            raised += f"checkpoint 4 in {tmp_path}" in str(error)
        else:
            assert_equal(restored.trees, trees)
            assert restored.meta == {"seed": 1}
        path.write_bytes(original)
    assert raised > 10


def noise_trees():
    noise = np.random.default_rng(0).integers(0, 256, 4096, np.uint8)  # does not compress
    return noise, {"params": {"noise": jnp.asarray(noise)}, "opt_state": {"mu": jnp.arange(3.0)}}


def flip_noise(folder, noise):
    hits = []
    for path in payload_files(folder, 4):
        at = path.read_bytes().find(noise[1000:1032].tobytes())
        if at >= 0:
            flip(path, at + 5, 3)
            hits.append(path)
    assert hits
    return hits[0]


def test_a_flipped_bit_in_the_payload_names_the_file(tmp_path):
    noise, trees = noise_trees()
    checkpoint.save(tmp_path, 4, trees, {})
    path = flip_noise(tmp_path, noise)
    with pytest.raises(CheckpointError) as error:
        checkpoint.restore(tmp_path, 4, trees)
    assert f"checkpoint 4 in {tmp_path} is corrupt" in str(error.value)
    assert str(path.relative_to(tmp_path / "4")) in str(error.value)
    sound = {"opt_state": trees["opt_state"]}  # what is not damaged can still be read
    assert_equal(checkpoint.restore(tmp_path, 4, sound).trees, sound)


def test_a_wrong_value_behind_sound_files_names_the_leaf(tmp_path, monkeypatch):
    """The second check, and proof that Orbax itself does not notice a flipped bit."""
    noise, trees = noise_trees()
    checkpoint.save(tmp_path, 4, trees, {})
    flip_noise(tmp_path, noise)
    monkeypatch.setattr(integrity, "check_files", lambda *_: None)
    with pytest.raises(CheckpointError, match=r"checkpoint 4 in .* corrupt: params/noise is not"):
        checkpoint.restore(tmp_path, 4, trees)


@pytest.mark.parametrize("damage", ["truncate", "remove"])
def test_a_corrupt_latest_is_reported_set_aside_and_the_older_one_used(tmp_path, caplog, damage):
    for step in (1, 2):
        checkpoint.save(tmp_path, step, make_trees(step), {"seed": step})
    for path in payload_files(tmp_path, 2):
        if "/d/" in str(path):
            os.truncate(path, path.stat().st_size // 2) if damage == "truncate" else path.unlink()
    with caplog.at_level(logging.WARNING):
        restored = checkpoint.restore_latest(tmp_path, make_trees())
    assert restored is not None
    assert restored.step == 1
    assert restored.meta == {"seed": 1}
    assert_equal(restored.trees, make_trees(1))
    assert f"checkpoint 2 in {tmp_path} is corrupt" in caplog.text
    assert ("bytes" if damage == "truncate" else "No such file") in caplog.text
    assert "trying the next older checkpoint" in caplog.text
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1", "2.corrupt"]
    checkpoint.save(tmp_path, 2, make_trees(2), {})
    assert checkpoint.steps(tmp_path) == [1, 2]


def test_no_good_checkpoint_is_an_error_not_a_new_start(tmp_path):
    trees = make_trees()
    assert checkpoint.restore_latest(tmp_path / "none", trees) is None
    for step in (1, 2):
        checkpoint.save(tmp_path, step, trees, {})
        os.remove(tmp_path / str(step) / "record.json")
    with pytest.raises(CheckpointError, match=r"no checkpoint in .*; checkpoint 1 in") as error:
        checkpoint.restore_latest(tmp_path, trees)
    assert "checkpoint 2" in str(error.value)
    assert checkpoint.steps(tmp_path) == [1, 2]  # nothing is moved


def test_another_structure_is_a_readable_difference(tmp_path):
    checkpoint.save(tmp_path, 5, {"params": {"a": jnp.zeros((3, 4)), "b": jnp.zeros(2)}}, {})
    like = {"params": {"a": jnp.zeros((3, 5)), "c": {"d": jnp.zeros(7, jnp.int32)}}}
    for read in (checkpoint.restore_latest, lambda f, t: checkpoint.restore(f, 5, t)):
        with pytest.raises(StructureError) as error:
            read(tmp_path, like)
        text = str(error.value)
        assert "checkpoint 5" in text
        assert "missing params/c/d int32[7]" in text
        assert "extra params/b float32[2]" in text
        assert "params/a is float32[3, 4], the model has float32[3, 5]" in text


@pytest.mark.parametrize(
    ("written", "age"), [(1, "an earlier"), (None, "an earlier"), (3, "a later")]
)
def test_a_checkpoint_of_another_layout_is_refused(tmp_path, written, age):
    """Whoever reads it: nothing is set aside, nothing is guessed."""
    trees = {"params": {"a": jnp.zeros(3)}}
    checkpoint.save(tmp_path, 5, trees, {}, best=5)
    file = tmp_path / "5" / "record.json"
    record = json.loads(file.read_text())["record"]
    assert record.pop("format") == 2
    record |= {} if written is None else {"format": written}
    digest = hashlib.blake2b(json.dumps(record, sort_keys=True).encode(), digest_size=16)
    file.write_text(json.dumps({"digest": digest.hexdigest(), "record": record}))
    for read in (
        lambda: checkpoint.restore(tmp_path, 5, trees),
        lambda: checkpoint.restore_latest(tmp_path, trees),
        lambda: checkpoint.load_params(tmp_path, trees["params"]),
        lambda: checkpoint.load_params(tmp_path, trees["params"], "latest"),
    ):
        with pytest.raises(
            CheckpointError, match=f"checkpoint 5 in .* {age} layout of jaxrec; train"
        ):
            read()
    assert [path.name for path in tmp_path.iterdir()] == ["5"]


def test_unknown_step(tmp_path):
    checkpoint.save(tmp_path, 5, {"params": {"a": jnp.zeros(3)}}, {})
    with pytest.raises(CheckpointError, match=r"no checkpoint 6 in .*\[5\]"):
        checkpoint.restore(tmp_path, 6, {"params": {"a": jnp.zeros(3)}})
    with pytest.raises(CheckpointError, match="exists already"):
        checkpoint.save(tmp_path, 5, {"params": {"a": jnp.zeros(3)}}, {})


def test_replacing_is_safe_at_every_moment(tmp_path):
    old, new = {"params": {"a": jnp.zeros(3)}}, {"params": {"a": jnp.ones(3)}}
    checkpoint.save(tmp_path, 5, old, {"which": "old"})
    checkpoint.save(tmp_path, 5, new, {"which": "new"}, replace=True)
    assert [p.name for p in tmp_path.iterdir()] == ["5"]
    assert checkpoint.restore(tmp_path, 5, old).meta == {"which": "new"}
    # killed between the two renames: the new one is complete
    (tmp_path / "5").rename(tmp_path / "5.new")
    shutil.copytree(tmp_path / "5.new", tmp_path / "5.deleting")
    checkpoint.clean(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["5"]
    assert_equal(checkpoint.restore(tmp_path, 5, old).trees, new)
    # killed before the first: the old one stays
    shutil.copytree(tmp_path / "5", tmp_path / "5.new")
    checkpoint.clean(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["5"]


def test_load_params(tmp_path):
    params, ema = {"a": jnp.zeros(3)}, {"a": jnp.ones(3)}
    with pytest.raises(CheckpointError, match="train first"):
        checkpoint.load_params(tmp_path, params)
    checkpoint.save(tmp_path, 1, {"params": params}, {})
    assert checkpoint.load_params(tmp_path, params)[0] == 1  # nothing validated: the latest
    checkpoint.save(tmp_path, 2, {"params": params, "ema": ema}, {}, best=2)
    checkpoint.save(tmp_path, 3, {"params": params}, {}, best=2)
    step, best = checkpoint.load_params(tmp_path, params)
    assert step == 2
    assert_equal(best, ema)
    step, latest = checkpoint.load_params(tmp_path, params, "latest")
    assert step == 3
    assert_equal(latest, params)
    assert checkpoint.load_params(tmp_path, params, "1")[0] == 1
    with pytest.raises(CheckpointError, match="allowed are best, latest"):
        checkpoint.load_params(tmp_path, params, "bets")
    with pytest.raises(CheckpointError, match="no checkpoint 9"):
        checkpoint.load_params(tmp_path, params, "9")


def big_trees():
    values = np.random.default_rng(0).normal(size=(300, 1000)).astype(np.float32)
    return {"params": {"big": jnp.asarray(values)}}  # 1.2 MB that do not compress


def test_a_file_size_limit_while_saving(tmp_path):
    """RLIMIT_FSIZE makes real writes fail, wherever the test runs."""
    small = {"params": {"big": jnp.zeros(4)}}
    checkpoint.save(tmp_path, 1, small, {})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
        with pytest.raises(CheckpointError) as error:
            checkpoint.save(tmp_path, 2, big_trees(), {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    check_full(tmp_path, str(error.value), small)


def test_disk_full_while_saving(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(disk)], capture_output=True
    )
    if mount.returncode:
        pytest.skip("a small file system cannot be mounted here")
    try:
        small = {"params": {"big": jnp.zeros(4)}}
        checkpoint.save(disk, 1, small, {})
        with pytest.raises(CheckpointError) as error:
            checkpoint.save(disk, 2, big_trees(), {})
        check_full(disk, str(error.value), small)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def check_full(folder: pathlib.Path, message: str, small):
    assert "checkpoint 2 was not saved" in message
    assert "is full" in message
    assert str(folder) in message
    assert "Earlier checkpoints are intact ([1])" in message
    assert [p.name for p in folder.iterdir()] == ["1"]
    assert_equal(checkpoint.restore(folder, 1, small).trees, small)
    checkpoint.save(folder, 2, small, {})  # with room, the same step can be saved
    assert checkpoint.steps(folder) == [1, 2]
