"""Llama-family checkpoints in the Hugging Face folder format, read and written without torch.

    spec, params = load("SmolLM2-135M")
    save("copy", spec, params)

A folder holds `config.json` and `model.safetensors`, or `model.safetensors.index.json` naming
several files. Llama, TinyLlama, SmolLM2 and Mistral-shaped models are one architecture (RMSNorm,
rotary positions, grouped queries, SwiGLU without bias vectors); settings that this decoder does
not compute are refused by name, they would give wrong numbers silently.

Matrices are transposed (published ones are [out, in]) and the layers stacked. With `shardings`
every device reads its own part of a file alone.
"""

import functools
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxrec.errors import ConfigError, WeightsError
from jaxrec.interop import llama_config
from jaxrec.nn.text_model import TextModel
from jaxrec.runtime import leaves
from jaxrec.types import Params

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARD_BYTES = 4 * 10**9  # of a file that `save` writes

# leaf of a layer -> (published name, is it a matrix)
_LAYER = {
    "attention_norm/scale": ("input_layernorm", False),
    "query/kernel": ("self_attn.q_proj", True),
    "key/kernel": ("self_attn.k_proj", True),
    "value/kernel": ("self_attn.v_proj", True),
    "out/kernel": ("self_attn.o_proj", True),
    "ffn_norm/scale": ("post_attention_layernorm", False),
    "gate/kernel": ("mlp.gate_proj", True),
    "up/kernel": ("mlp.up_proj", True),
    "down/kernel": ("mlp.down_proj", True),
}
_TOP = {
    "embedding": ("model.embed_tokens", False),
    "final_norm/scale": ("model.norm", False),
    "head/kernel": ("lm_head", True),
}
# buffers of old checkpoints, without effect
_UNUSED = ("rotary_emb.inv_freq",)


class Source(NamedTuple):
    """Where a leaf comes from: published names (one per layer, or a single one), transposed?"""

    names: tuple[str, ...]
    stacked: bool
    transposed: bool


def sources(model: TextModel) -> dict[str, Source]:
    """Leaf path of the parameters -> where a published checkpoint has it."""
    found = {
        leaf: Source((f"{name}.weight",), False, matrix)
        for leaf, (name, matrix) in _TOP.items()
        if not (leaf.startswith("head/") and model.tied)
    }
    for leaf, (name, matrix) in _LAYER.items():
        names = tuple(f"model.layers.{i}.{name}.weight" for i in range(model.config.layers))
        found[f"layers/{leaf}"] = Source(names, True, matrix)
    return found


def shapes(model: TextModel) -> dict[str, tuple[int, ...]]:
    """Published name -> its shape."""
    abstract = leaves.flatten(jax.eval_shape(model.init, jax.random.key(0)))
    found = {}
    for leaf, source in sources(model).items():
        shape = tuple(abstract[leaf].shape)[1:] if source.stacked else tuple(abstract[leaf].shape)
        for name in source.names:
            found[name] = shape[::-1] if source.transposed else shape
    return found


class Reader:
    """Tensors of a folder by published name, read from its files when asked for."""

    def __init__(self, folder: str | os.PathLike[str]):
        self.folder = Path(folder)
        safe_open = _safetensors().safe_open
        self._files: dict[str, Any] = {}
        for file in self._paths():
            try:
                opened = safe_open(file, framework="numpy")
            except Exception as error:  # the library's error type is not exported everywhere
                raise WeightsError(f"{file}: not a readable safetensors file ({error})") from error
            for name in opened.keys():  # noqa: SIM118 (no mapping)
                self._files[name] = opened

    def _paths(self) -> Iterator[Path]:
        index = self.folder / INDEX
        if index.is_file():
            names = sorted(set(llama_config.read_json(index).get("weight_map", {}).values()))
            if not names:
                raise WeightsError(f"{index}: has no weight_map")
            missing = [name for name in names if not (self.folder / name).is_file()]
            if missing:
                raise WeightsError(f"{index}: names files that are missing: {', '.join(missing)}")
            yield from (self.folder / name for name in names)
        elif (self.folder / WEIGHTS).is_file():
            yield self.folder / WEIGHTS
        else:
            others = sorted(p.name for p in self.folder.glob("*.bin"))
            hint = f"; there is {', '.join(others)}: save it as safetensors" if others else ""
            raise WeightsError(f"{self.folder}: neither {WEIGHTS} nor {INDEX}{hint}")

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor's name and shape."""
        return {n: tuple(f.get_slice(n).get_shape()) for n, f in self._files.items()}

    def read(self, name: str, index: tuple[slice, ...] = ()) -> np.ndarray:
        """A tensor or a part of it, in the file's dtype."""
        if not index:
            return self._files[name].get_tensor(name)
        return self._files[name].get_slice(name)[index]


def load(
    folder: str | os.PathLike[str], *, shardings: Any = None, prefix: str = ""
) -> tuple[TextModel, Params]:
    """(model, float32 parameters) of a folder.

    shardings: tree like the parameters (`TextModel.init`) of shardings; every device then
    reads its part alone. Default: whole arrays in host memory (NumPy).
    Raises WeightsError with every missing, unknown and mis-shaped name.
    """
    model = llama_config.read_config(folder)
    reader = Reader(folder)
    found = {n.removeprefix(prefix): s for n, s in reader.shapes().items()}
    # a bare LlamaModel has no "model." in front
    bare = "norm.weight" in found
    if bare:
        found = {
            name if name.startswith("lm_head") else f"model.{name}": s for name, s in found.items()
        }
    if model.tied:
        found.pop("lm_head.weight", None)  # a copy of the embedding
    compare(found, shapes(model), str(folder))

    def read(name: str, index: tuple[slice, ...] = ()) -> np.ndarray:
        raw = name.removeprefix("model.") if bare else name
        return np.asarray(reader.read(prefix + raw, index), np.float32)

    return model, _collect(model, read, shardings)


def from_published(model: TextModel, weights: Mapping[str, np.ndarray]) -> Params:
    """Parameters from published names and tensors in memory (see `published`)."""
    compare({name: np.shape(w) for name, w in weights.items()}, shapes(model), "weights")
    return _collect(model, lambda name, index=(): np.asarray(weights[name], np.float32)[index])


def _collect(model: TextModel, read: Any, shardings: Any = None) -> Params:
    like = jax.eval_shape(model.init, jax.random.key(0))
    placed = None if shardings is None else leaves.flatten(shardings)
    flat: dict[str, Any] = {}
    origin = sources(model)
    for leaf, abstract in leaves.flatten(like).items():
        source = origin[leaf]
        if placed is None:
            flat[leaf] = assemble(source, read)
        else:
            flat[leaf] = jax.make_array_from_callback(
                abstract.shape,
                placed[leaf],
                functools.partial(assemble, source, read),
            )
    return jax.tree.unflatten(jax.tree.structure(like), list(flat.values()))


def assemble(source: Source, read: Any, index: tuple[slice, ...] | None = None) -> np.ndarray:
    """A leaf, or the part of it that `index` names, from published tensors."""
    if index is None:
        parts = [read(name) for name in source.names]
    else:
        layers = index[:1] if source.stacked else ()
        inner = index[1:] if source.stacked else index
        inner = inner[::-1] if source.transposed else inner
        names = source.names[layers[0]] if layers else source.names
        parts = [read(name, tuple(inner)) for name in names]
    if source.transposed:
        parts = [part.T for part in parts]
    return np.stack(parts) if source.stacked else np.ascontiguousarray(parts[0])


def compare(
    found: Mapping[str, tuple[int, ...]], needed: Mapping[str, tuple[int, ...]], where: str
) -> None:
    """Raises WeightsError with every missing, unknown and mis-shaped name."""
    missing = sorted(set(needed) - set(found))
    unknown = sorted(n for n in set(found) - set(needed) if not n.endswith(_UNUSED))
    shaped = [
        f"{name} has shape {found[name]}, {needed[name]} is needed"
        for name in sorted(set(found) & set(needed))
        if tuple(found[name]) != tuple(needed[name])
    ]
    lines = [f"missing: {', '.join(missing)}"] if missing else []
    lines += [f"unknown: {', '.join(unknown)}"] if unknown else []
    lines += shaped
    if lines:
        raise WeightsError(
            f"{where}: weights do not fit {llama_config.CONFIG}\n  " + "\n  ".join(lines)
        )


def published(model: TextModel, params: Params) -> Iterator[tuple[str, np.ndarray]]:
    """(published name, tensor) of every weight. Raises WeightsError where adapters are left."""
    flat = leaves.flatten(params)
    adapters = [leaf for leaf in flat if leaf.rpartition("/")[2].startswith("lora_")]
    if adapters:
        raise WeightsError(f"adapters have no place in a plain checkpoint: {adapters[0]}, ...")
    for leaf, source in sources(model).items():
        value = np.asarray(flat[leaf])
        for layer, name in enumerate(source.names):
            part = value[layer] if source.stacked else value
            yield name, np.ascontiguousarray(part.T if source.transposed else part)


def save(
    folder: str | os.PathLike[str],
    model: TextModel,
    params: Params,
    *,
    dtype: str = "float32",
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes `config.json` and the weights, in several files when they exceed `shard_bytes`.

    dtype: float32, bfloat16 or float16, of the stored tensors.
    """
    import ml_dtypes

    types = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
    if dtype not in types:
        raise ConfigError(f"dtype={dtype!r}: allowed are {', '.join(types)}")
    save_file = _safetensors().numpy.save_file
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for old in (folder / INDEX, *folder.glob("model*.safetensors")):
        old.unlink(missing_ok=True)  # nothing of another model stays beside this one
    shards: list[dict[str, np.ndarray]] = [{}]
    held = total = 0
    for name, tensor in published(model, params):
        tensor = tensor.astype(types[dtype])
        if shards[-1] and held + tensor.nbytes > shard_bytes:
            shards.append({})
            held = 0
        shards[-1][name] = tensor
        held, total = held + tensor.nbytes, total + tensor.nbytes
    metadata = {"format": "pt"}  # what other readers look for
    if len(shards) == 1:
        save_file(shards[0], folder / WEIGHTS, metadata)
    else:
        places: dict[str, str] = {}
        for number, shard in enumerate(shards, 1):
            file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            save_file(shard, folder / file, metadata)
            places |= dict.fromkeys(shard, file)
        index = {"metadata": {"total_size": total}, "weight_map": places}
        (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True))
    values = llama_config.config_values(model) | {"dtype": dtype, "torch_dtype": dtype}
    (folder / llama_config.CONFIG).write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")


def _safetensors() -> Any:
    try:
        import safetensors.numpy
    except ModuleNotFoundError as error:
        raise WeightsError(
            "the package safetensors is not installed: pip install 'jaxrec[hllm]'"
        ) from error
    return safetensors
