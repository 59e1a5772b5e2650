"""Published Llama checkpoints: numbers of transformers, folders read and written, bad folders."""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.errors import WeightsError
from jaxrec.interop import huggingface
from jaxrec.nn.text_model import Cache

pytest.importorskip("safetensors")

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "llama"
CASES = ("plain", "scaled")


def write(folder, arrays):
    """A Hugging Face folder of recorded weights."""
    from safetensors.numpy import save_file

    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(str(arrays["config"]))
    weights = {
        name.removeprefix("weight/"): np.ascontiguousarray(value)
        for name, value in arrays.items()
        if name.startswith("weight/")
    }
    save_file(weights, folder / "model.safetensors")


@functools.cache
def arrays(name):
    with np.load(GOLDEN / f"{name}.npz") as file:
        return {key: file[key] for key in file.files}


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "model", arrays("plain"))
    return tmp_path / "model"


def check(model, params, recorded):
    """Hidden states of every way to feed the texts are transformers', to 1e-4."""
    words, mask = recorded["words"].astype(np.int32), recorded["mask"].astype(np.int32)
    hidden = jax.jit(model.hidden)
    positions = np.broadcast_to(np.arange(words.shape[1], dtype=np.int32), words.shape)
    whole, (k, v) = hidden(params, words, mask, positions)
    exists = mask > 0
    np.testing.assert_allclose(whole[exists], recorded["hidden"][exists], atol=1e-4)
    logits = model.logits(params, whole)
    np.testing.assert_allclose(logits[exists], recorded["logits"][exists], atol=1e-3, rtol=1e-4)

    left = recorded["left_mask"].astype(np.int32)
    place = np.maximum(left.cumsum(1) - 1, 0).astype(np.int32)
    padded, _ = hidden(params, words, left, place)
    np.testing.assert_allclose(padded[left > 0], recorded["left_hidden"][left > 0], atol=1e-4)

    # the three texts behind each other in one row
    lengths = mask.sum(1)
    row = np.concatenate([words[i, :n] for i, n in enumerate(lengths)])[None]
    text = np.concatenate([np.full(n, i + 1) for i, n in enumerate(lengths)])[None]
    place = np.concatenate([np.arange(n) for n in lengths])[None]
    packed, _ = hidden(params, row, text.astype(np.int32), place.astype(np.int32))
    np.testing.assert_allclose(packed[0], recorded["hidden"][exists], atol=1e-4)

    # seven words, their keys and values cached, then the rest
    _, (k, v) = hidden(params, words[:1, :7], mask[:1, :7], positions[:1, :7])
    np.testing.assert_allclose(
        k[:, :, :7], np.swapaxes(recorded["cache_k"], 2, 3)[:, :, :7], atol=1e-4
    )
    np.testing.assert_allclose(
        v[:, :, :7], np.swapaxes(recorded["cache_v"], 2, 3)[:, :, :7], atol=1e-4
    )
    room = ((0, 0), (0, 0), (0, 2), (0, 0), (0, 0))  # a cache with two free places
    cache = Cache(jnp.pad(k, room, constant_values=9.0), jnp.pad(v, room), jnp.arange(9)[None] < 7)
    rest, _ = hidden(params, words[:1, 7:], mask[:1, 7:], positions[:1, 7:], cache)
    np.testing.assert_allclose(rest, recorded["rest_hidden"], atol=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_recorded_numbers_of_transformers(tmp_path, name):
    """Padding on either side, packing and cached keys and values."""
    write(tmp_path, arrays(name))
    check(*huggingface.load(tmp_path), arrays(name))


@pytest.mark.parametrize("name", CASES)
def test_numbers_of_the_installed_transformers(tmp_path, name):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from tests.interop import make_llama_golden

    recorded = make_llama_golden.record(make_llama_golden.CASES[name], seed=3)
    write(tmp_path, recorded)
    check(*huggingface.load(tmp_path), recorded)


@pytest.mark.parametrize("shard_bytes", [10**9, 4000])
def test_saved_and_loaded_is_the_same(tmp_path, folder, shard_bytes):
    model, params = huggingface.load(folder)
    huggingface.save(tmp_path / "copy", model, params, shard_bytes=shard_bytes)
    files = sorted(p.name for p in (tmp_path / "copy").glob("*.safetensors"))
    assert (len(files) > 1) == (shard_bytes == 4000)
    again, copied = huggingface.load(tmp_path / "copy")
    assert again == model
    jax.tree.map(np.testing.assert_array_equal, copied, params)
    # a smaller model saved over it leaves nothing behind
    huggingface.save(tmp_path / "copy", model, params)
    assert [p.name for p in (tmp_path / "copy").glob("*.safetensors")] == ["model.safetensors"]


def test_half_precision_files(tmp_path, folder):
    model, params = huggingface.load(folder)
    huggingface.save(tmp_path / "half", model, params, dtype="bfloat16")
    _, rounded = huggingface.load(tmp_path / "half")
    assert {x.dtype for x in jax.tree.leaves(rounded)} == {np.dtype("float32")}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2**-8), rounded, params)


def test_every_device_reads_its_part(folder):
    """Straight to sharded arrays: values equal, no read covers a whole matrix."""
    whole_model, whole = huggingface.load(folder)
    mesh = jax.make_mesh((2,), ("fsdp",), devices=jax.devices()[:2])

    def split(x):
        axes = [None] * x.ndim
        if x.ndim > 1:
            axes[-1] = "fsdp" if x.shape[-1] % 2 == 0 else None
        return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))

    shardings = jax.tree.map(split, whole)
    model, params = huggingface.load(folder, shardings=shardings)
    assert model == whole_model
    jax.tree.map(np.testing.assert_array_equal, params, whole)
    query = params["layers"]["query"]["kernel"]
    assert query.addressable_shards[0].data.shape[-1] == query.shape[-1] // 2


def test_a_bare_decoder_without_prefix(tmp_path):
    """`LlamaModel.save_pretrained` writes names without `model.` and no head."""
    recorded = arrays("scaled")
    bare = {k.replace("weight/model.", "weight/"): v for k, v in recorded.items()}
    write(tmp_path, bare)
    _, params = huggingface.load(tmp_path)
    np.testing.assert_array_equal(params["embedding"], recorded["weight/model.embed_tokens.weight"])


def test_every_wrong_name_is_listed(tmp_path):
    recorded = dict(arrays("plain"))
    recorded["weight/model.layers.0.mlp.extra.weight"] = np.zeros(3, np.float32)
    del recorded["weight/model.norm.weight"], recorded["weight/lm_head.weight"]
    name = "weight/model.layers.1.self_attn.k_proj.weight"
    recorded[name] = recorded[name][:-1]
    write(tmp_path, recorded)
    with pytest.raises(WeightsError) as error:
        huggingface.load(tmp_path)
    text = str(error.value)
    assert "missing: lm_head.weight, model.norm.weight" in text
    assert "unknown: model.layers.0.mlp.extra.weight" in text
    assert "self_attn.k_proj.weight has shape (7, 16), (8, 16) is needed" in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gpt2"}, "model_type='gpt2', known are llama, mistral"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu' is not supported"),
        ({"attention_bias": True}, "attention_bias=True is not supported"),
        ({"hidden_size": "16"}, "hidden_size='16', a positive integer"),
        ({"num_key_value_heads": 3}, "num_key_value_heads=3 does not divide"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "rope_type='yarn', known are"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8}}, "without low_freq_factor"),
    ],
)
def test_settings_that_are_not_computed_are_refused(folder, change, message):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(WeightsError, match=r"config\.json") as error:
        huggingface.load(folder)
    assert message in str(error.value)


def test_a_sliding_window_limits_the_context(folder):
    file = folder / "config.json"
    values = json.loads(file.read_text()) | {"model_type": "mistral", "sliding_window": 9}
    file.write_text(json.dumps(values))
    model, params = huggingface.load(folder)
    assert model.context == 9
    with pytest.raises(ValueError, match="context is 9"):
        model.generate(params, np.arange(1, 8), 3)
    with pytest.raises(ValueError, match="prompt is empty"):
        model.generate(params, [], 3)


def test_folders_without_a_model(tmp_path, folder):
    with pytest.raises(WeightsError, match=r"config\.json: no such file"):
        huggingface.load(tmp_path)
    weights = folder / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[: len(content) // 2])
    with pytest.raises(WeightsError, match=r"model\.safetensors: not a readable safetensors"):
        huggingface.load(folder)
    weights.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(WeightsError, match=r"pytorch_model\.bin: save it as safetensors"):
        huggingface.load(folder)
    index = {"weight_map": {"model.norm.weight": "model-1.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(WeightsError, match=r"files that are missing: model-1\.safetensors"):
        huggingface.load(folder)


def test_greedy_words_with_a_cache_are_those_without(folder):
    model, params = huggingface.load(folder)
    found = model.generate(params, [3, 5, 7], 4)
    words, hidden = [3, 5, 7], jax.jit(model.hidden)
    for _ in range(4):
        row = np.zeros((1, 7), np.int32)
        row[0, : len(words)] = words
        exists = (np.arange(7) < len(words)).astype(np.int32)[None]
        y, _ = hidden(params, row, exists, np.arange(7, dtype=np.int32)[None])
        words.append(int(np.argmax(model.logits(params, y[:, len(words) - 1]))))
    assert found.tolist() == words[3:]
