"""`config.json` of Llama-family models in the Hugging Face format <-> `ModelConfig`."""

import os
from pathlib import Path

from jaxrec.config import LlamaConfig, ModelConfig
from jaxrec.errors import WeightsError
from jaxrec.nn.text_model import TextModel
from jaxrec.types import Json
from jaxrec.untrusted import json_objects

CONFIG = "config.json"
MODEL_TYPES = ("llama", "mistral")
MAX_LAYERS = 1024
MAX_SIZE = 1 << 24  # of widths, heads and vocabularies: what is declared is not allocated unseen
MAX_INDEX_BYTES = 1 << 28  # of JSON files of a model folder


def read_config(folder: str | os.PathLike[str]) -> TextModel:
    """The model of a folder's `config.json`. Raises WeightsError naming the key."""
    file = Path(folder) / CONFIG
    values = read_json(file)
    kind = values.get("model_type")
    if kind not in MODEL_TYPES:
        raise WeightsError(f"{file}: model_type={kind!r}, known are {', '.join(MODEL_TYPES)}")
    for key, allowed in (
        ("hidden_act", ("silu",)),
        ("attention_bias", (False, None)),
        ("mlp_bias", (False, None)),
    ):
        setting = values.get(key, allowed[0])
        if not any(setting is known or setting == known for known in allowed):
            raise WeightsError(f"{file}: {key}={setting!r} is not supported, only {allowed[0]!r}")

    def size(key: str, high: int = MAX_SIZE) -> int:
        number = values.get(key)
        if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= high:
            raise WeightsError(
                f"{file}: {key}={json_objects.shown(number)}, a positive integer is needed, at "
                f"most {high}"
            )
        return number

    heads, width = size("num_attention_heads"), size("hidden_size")
    kv_heads = size("num_key_value_heads") if values.get("num_key_value_heads") else heads
    if heads % kv_heads:
        raise WeightsError(
            f"{file}: num_key_value_heads={kv_heads} does not divide num_attention_heads={heads}"
        )
    head_width = size("head_dim") if values.get("head_dim") else width // heads
    llama = LlamaConfig(
        kv_heads=kv_heads,
        head_width=head_width,
        ffn_width=size("intermediate_size"),
        norm_eps=json_objects.get(values, "rms_norm_eps", float, str(file), WeightsError, 1e-6),
        **_rope(file, values),
    )
    config = ModelConfig(
        backbone="llama",
        width=width,
        layers=size("num_hidden_layers", MAX_LAYERS),
        heads=heads,
        dropout=0.0,
        embed_dropout=0.0,
        llama=llama,
    )
    # beyond a sliding window attention would differ: longer texts are refused
    context = size("max_position_embeddings")
    if values.get("sliding_window"):
        context = min(context, size("sliding_window"))
    tied = bool(values.get("tie_word_embeddings", False))
    return TextModel(config, size("vocab_size"), tied, context)


def _rope(file: Path, values: Json) -> Json:
    """Rotary settings of `LlamaConfig` from rope_theta and rope_scaling or rope_parameters."""
    where, rope = str(file), Json()
    for name in ("rope_scaling", "rope_parameters"):
        if values.get(name):
            rope |= json_objects.get(values, name, dict, where, WeightsError)
    given = rope if "rope_theta" in rope else values
    theta = json_objects.get(given, "rope_theta", float, where, WeightsError, 10000.0)
    kind = rope.get("rope_type", rope.get("type", "default"))
    settings: Json = {"rope_theta": theta}
    if kind == "default":
        return settings
    if kind not in ("linear", "llama3"):
        raise WeightsError(f"{file}: rope_type={kind!r}, known are default, linear, llama3")
    names: dict[str, tuple[str, type]] = {"factor": ("rope_factor", float)}
    if kind == "llama3":
        names |= {
            "low_freq_factor": ("rope_low", float),
            "high_freq_factor": ("rope_high", float),
            "original_max_position_embeddings": ("rope_length", int),
        }
    missing = [name for name in names if name not in rope]
    if missing:
        raise WeightsError(f"{file}: rope_type={kind!r} without {', '.join(missing)}")
    numbers: Json = {
        ours: json_objects.get(rope, n, kind_of, where, WeightsError)
        for n, (ours, kind_of) in names.items()
    }
    return settings | {"rope_scaling": kind} | numbers


def config_values(model: TextModel) -> Json:
    """The content of `config.json` for a model: the inverse of `read_config`."""
    config, llama = model.config, model.config.llama
    rope: Json = {"rope_type": "default"}
    if llama.rope_scaling != "none":
        rope = {"rope_type": llama.rope_scaling, "factor": llama.rope_factor}
    if llama.rope_scaling == "llama3":
        rope |= {
            "low_freq_factor": llama.rope_low,
            "high_freq_factor": llama.rope_high,
            "original_max_position_embeddings": llama.rope_length,
        }
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "hidden_size": config.width,
        "intermediate_size": config.ffn_width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_width,
        "rms_norm_eps": llama.norm_eps,
        "rope_theta": llama.rope_theta,
        "rope_scaling": None if rope["rope_type"] == "default" else rope,
        "rope_parameters": rope | {"rope_theta": llama.rope_theta},
        "max_position_embeddings": model.context,
        "vocab_size": model.vocabulary,
        "tie_word_embeddings": model.tied,
    }


def read_json(file: Path) -> Json:
    """A JSON object of a model folder. Raises WeightsError naming the file."""
    if not file.exists():
        raise WeightsError(f"{file}: no such file; a Hugging Face model folder has it")
    return json_objects.read(file, WeightsError, max_bytes=MAX_INDEX_BYTES)
