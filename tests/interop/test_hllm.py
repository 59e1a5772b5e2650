"""Published HLLM checkpoints: both towers, token and scale; what is listed when they do not fit."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxrec.config import LlamaConfig, ModelConfig
from jaxrec.errors import WeightsError
from jaxrec.interop import hllm, huggingface
from jaxrec.nn.text_model import TextModel

CONFIG = ModelConfig(
    backbone="llama",
    width=4,
    heads=1,
    layers=2,
    dropout=0.0,
    embed_dropout=0.0,
    llama=LlamaConfig(kv_heads=1, head_width=4, ffn_width=6),
)
BASE = TextModel(CONFIG, 9, tied=False, context=32)


@pytest.fixture
def state():
    """Names as the published code writes them: two causal models, token and log scale."""
    rng = np.random.default_rng(0)
    found = {
        f"{tower}{name}": rng.standard_normal(shape).astype(np.float32)
        for tower in ("item_llm.", "user_llm.")
        for name, shape in huggingface.shapes(BASE).items()
    }
    found["item_emb_tokens"] = rng.standard_normal((1, 1, 4)).astype(np.float32)
    found["logit_scale"] = np.asarray(np.log(20.0), np.float32)
    return found


def test_both_towers_token_and_scale(state, tmp_path):
    checkpoint = hllm.convert({f"module.{k}": v for k, v in state.items()}, BASE)
    np.testing.assert_array_equal(checkpoint.token, state["item_emb_tokens"].reshape(-1))
    assert checkpoint.scale == pytest.approx(20.0)
    query = checkpoint.user["layers"]["query"]["kernel"][1]
    np.testing.assert_array_equal(query, state["user_llm.model.layers.1.self_attn.q_proj.weight"].T)
    pytest.importorskip("safetensors")
    hllm.save(checkpoint, str(tmp_path), str(tmp_path / "out"), "float32")
    model, item = huggingface.load(tmp_path / "out" / "item")
    assert model == dataclasses.replace(BASE, tied=True)
    jax.tree.map(np.testing.assert_array_equal, item, checkpoint.item)
    extras = hllm.extras(tmp_path / "out" / "item")
    np.testing.assert_array_equal(extras["token"], checkpoint.token)
    assert extras["scale"] == pytest.approx(20.0)
    assert hllm.extras(tmp_path / "out" / "user") == {}
    (tmp_path / "out" / "item" / hllm.EXTRAS).write_bytes(b"PK no")
    with pytest.raises(WeightsError, match=r"hllm\.npz: damaged"):
        hllm.extras(tmp_path / "out" / "item")


def test_a_user_tower_without_words_and_bare_decoders(state):
    bare = {k.replace("_llm.model.", "_llm."): v for k, v in state.items() if "lm_head" not in k}
    del bare["user_llm.embed_tokens.weight"]
    checkpoint = hllm.convert(bare, BASE)
    assert not checkpoint.user["embedding"].any()
    np.testing.assert_array_equal(
        checkpoint.item["embedding"], state["item_llm.model.embed_tokens.weight"]
    )


def test_everything_that_does_not_fit_is_listed(state):
    with pytest.raises(WeightsError, match="no logit_scale in the checkpoint"):
        hllm.convert({k: v for k, v in state.items() if k != "logit_scale"}, BASE)
    with pytest.raises(WeightsError, match=r"unknown names in the checkpoint: other\.weight"):
        hllm.convert({**state, "other.weight": np.zeros(2)}, BASE)
    with pytest.raises(WeightsError, match="item_emb_tokens has shape"):
        hllm.convert({**state, "item_emb_tokens": np.zeros((2, 4))}, BASE)
    broken = dict(state)
    del broken["user_llm.model.norm.weight"]
    broken["user_llm.model.layers.0.mlp.up_proj.weight"] = np.zeros((5, 4))
    with pytest.raises(WeightsError, match=r"missing: user_llm\.model\.norm\.weight") as error:
        hllm.convert(broken, BASE)
    assert "user_llm.model.layers.0.mlp.up_proj.weight has shape (5, 4)" in str(error.value)


def test_torch_files(state, tmp_path, capsys):
    torch = pytest.importorskip("torch")
    pytest.importorskip("safetensors")
    base = tmp_path / "base"
    huggingface.save(base, BASE, BASE.init(jax.random.key(0)))
    path = tmp_path / "pytorch_model.bin"
    torch.save({k: torch.as_tensor(v) for k, v in state.items()}, path)
    out = f"--output={tmp_path}/out"
    assert hllm.main([str(path), f"--base={base}", out, "--dtype=float32"]) == 0
    assert "scale of logits 20.00" in capsys.readouterr().out
    torch.save({"code": print}, path)  # a pickled function: must not be loaded
    with pytest.raises(SystemExit):
        hllm.main([str(path), f"--base={base}", out])
    assert "not a torch file of plain weights" in capsys.readouterr().err
