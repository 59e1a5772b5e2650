"""GGUF files: rows put back, metadata and vocabulary read, and what is refused."""

import numpy as np
import pytest

from jaxrec.errors import WeightsError
from jaxrec.interop import gguf, huggingface

FIELDS = {
    "general.architecture": "llama",
    "llama.block_count": 2,
    "llama.context_length": 32,
    "llama.embedding_length": 8,
    "llama.feed_forward_length": 12,
    "llama.attention.head_count": 2,
    "llama.attention.head_count_kv": 1,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "llama.rope.freq_base": 100.0,
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.tokens": ["<e>", "a", "b", "ab", "1", "Ġ", "Ġab"],
    "tokenizer.ggml.token_type": [3, 1, 1, 1, 1, 1, 1],
    "tokenizer.ggml.merges": ["a b", "Ġ ab"],
}
NAMES = {
    "attn_q": (8, 8),
    "attn_k": (4, 8),
    "attn_v": (4, 8),
    "attn_output": (8, 8),
    "ffn_gate": (12, 8),
    "ffn_up": (12, 8),
    "ffn_down": (8, 12),
    "attn_norm": (8,),
    "ffn_norm": (8,),
}


def permute(weight, heads):
    """What the converter to GGUF does: halves (i, i + H / 2) to pairs (2 i, 2 i + 1)."""
    rows, width = weight.shape
    out = np.empty_like(weight).reshape(heads, rows // heads, width)
    halves = weight.reshape(heads, rows // heads, width)
    half = rows // heads // 2
    out[:, 0::2], out[:, 1::2] = halves[:, :half], halves[:, half:]
    return out.reshape(rows, width)


def write(path, fields=FIELDS, extra=()):
    package = pytest.importorskip("gguf")
    rng = np.random.default_rng(0)
    writer = package.GGUFWriter(path, fields["general.architecture"])
    for key, value in fields.items():
        if isinstance(value, list):
            writer.add_array(key, value)
        elif isinstance(value, str):
            if key != "general.architecture":
                writer.add_string(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        else:
            writer.add_uint32(key, value)
    weights = {"token_embd.weight": (7, 8), "output_norm.weight": (8,), **dict(extra)}
    for layer in range(2):
        weights |= {f"blk.{layer}.{n}.weight": shape for n, shape in NAMES.items()}
    weights = {n: rng.standard_normal(s).astype(np.float32) for n, s in weights.items()}
    for name, value in weights.items():
        stored = value
        if value.ndim == 2 and ("attn_q" in name or "attn_k" in name):
            stored = permute(value, 2 if "attn_q" in name else 1)
        writer.add_tensor(name, stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return weights


def test_a_file_becomes_a_folder(tmp_path, capsys):
    pytest.importorskip("safetensors")
    pytest.importorskip("tokenizers")
    weights = write(tmp_path / "m.gguf")
    assert gguf.main([str(tmp_path / "m.gguf"), f"--output={tmp_path}/m", "--dtype=float32"]) == 0
    assert "2 layers of width 8, 2/1 heads, 7 tokens" in capsys.readouterr().out
    model, params = huggingface.load(tmp_path / "m")
    assert model.tied
    assert model.context == 32
    assert model.config.llama.rope_theta == 100.0
    published = dict(huggingface.published(model, params))
    for ours, name in (
        ("blk.1.attn_q.weight", "model.layers.1.self_attn.q_proj.weight"),
        ("blk.0.attn_k.weight", "model.layers.0.self_attn.k_proj.weight"),
        ("blk.1.ffn_down.weight", "model.layers.1.mlp.down_proj.weight"),
        ("token_embd.weight", "model.embed_tokens.weight"),
    ):
        np.testing.assert_array_equal(published[name], weights[ours])


def test_the_vocabulary_becomes_a_tokenizer():
    pytest.importorskip("tokenizers")
    tokenizer = gguf.tokenizer_of(FIELDS)
    ids = tokenizer.encode("ab1 ab<e>").ids
    assert ids == [3, 4, 6, 0]
    assert tokenizer.decode(ids) == "ab1 ab"  # special words are no text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"general.architecture": "gpt2"}, "general.architecture='gpt2'"),
        ({"llama.block_count": None}, r"llama\.block_count is missing"),
        ({"llama.rope.scaling.type": "yarn"}, r"llama\.rope\.scaling\.type"),
    ],
)
def test_metadata_that_is_not_known_is_refused(change, message):
    fields = {k: v for k, v in (FIELDS | change).items() if v is not None}
    with pytest.raises(WeightsError, match=message):
        gguf.model_of(fields, True)


def test_other_tokenizers_are_refused():
    pytest.importorskip("tokenizers")
    with pytest.raises(WeightsError, match=r"pre='llama-bpe'.*only gpt2 with smollm"):
        gguf.tokenizer_of(FIELDS | {"tokenizer.ggml.pre": "llama-bpe"})


def test_bad_files(tmp_path, capsys):
    pytest.importorskip("gguf")
    (tmp_path / "x.gguf").write_bytes(b"no such format, but long enough to be read")
    with pytest.raises(SystemExit) as stop:
        gguf.main([str(tmp_path / "x.gguf"), f"--output={tmp_path}/x"])
    assert stop.value.code == 2
    assert "x.gguf: not a readable GGUF file" in capsys.readouterr().err
    write(tmp_path / "y.gguf", extra={"blk.0.attn_q.bias": (8,)}.items())
    with pytest.raises(WeightsError, match=r"unknown: model\.layers\.0\.self_attn\.q_proj\.bias"):
        gguf.convert(str(tmp_path / "y.gguf"), str(tmp_path / "y"))
