"""Llama-family checkpoints in the Hugging Face folder format, read and written without torch.

    spec, params = load("SmolLM2-135M")
    save("copy", spec, params)

A folder holds `config.json` and `model.safetensors`, or `model.safetensors.index.json` naming
several files. Llama, TinyLlama, SmolLM2 and Mistral-shaped models are one architecture (RMSNorm,
rotary positions, grouped queries, SwiGLU without bias vectors). Settings that this decoder does not
support are refused by name, since they would silently give wrong numbers.

Matrices are transposed (published ones are [out, in]) and the layers stacked. With `shardings`
every device reads only its own part of a file.
"""

import functools
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple, Protocol

import jax
import numpy as np

from jaxrec.errors import ConfigError, WeightsError
from jaxrec.interop import llama_config
from jaxrec.model import parameters
from jaxrec.nn.text_model import TextModel
from jaxrec.runtime import leaves, workdir
from jaxrec.types import Array, Params, Tree
from jaxrec.untrusted import json_objects

if TYPE_CHECKING:
    from safetensors import safe_open

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARD_BYTES = 4 * 10**9  # of a file that `save` writes

# leaf of a layer -> (published name, whether it is a matrix)
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
    """The tensors of a leaf.

    names: published ones. stacked: one tensor per layer, not a single one. transposed: [out, in].
    """

    names: tuple[str, ...]
    stacked: bool
    transposed: bool


def sources(model: TextModel) -> dict[str, Source]:
    """Leaf path of the parameters -> its tensors in a published checkpoint."""
    table = {
        leaf: Source((f"{name}.weight",), False, matrix)
        for leaf, (name, matrix) in _TOP.items()
        if not (leaf.startswith("head/") and model.tied)
    }
    for leaf, (name, matrix) in _LAYER.items():
        names = tuple(f"model.layers.{i}.{name}.weight" for i in range(model.config.layers))
        table[f"layers/{leaf}"] = Source(names, True, matrix)
    return table


def shapes(model: TextModel) -> dict[str, tuple[int, ...]]:
    """Published name -> its shape."""
    abstract = leaves.flatten(jax.eval_shape(model.init, jax.random.key(0)))
    result = {}
    for leaf, source in sources(model).items():
        shape = tuple(abstract[leaf].shape)[1:] if source.stacked else tuple(abstract[leaf].shape)
        for name in source.names:
            result[name] = shape[::-1] if source.transposed else shape
    return result


class Read(Protocol):
    """Reads a published tensor, or a slice of it, as float32."""

    def __call__(self, name: str, index: tuple[slice, ...] = ()) -> np.ndarray:
        """The array of a name, or the slice `index` of it."""
        ...


class Reader:
    """Tensors of a folder by published name, read on demand. Raises WeightsError."""

    def __init__(self, folder: str | os.PathLike[str]):
        self.folder = Path(folder)
        open_file = _safetensors().safe_open
        self._files: dict[str, safe_open] = {}
        for file in self._paths():
            try:
                opened = open_file(file, framework="numpy")
            except Exception as error:  # the library's error type is not exported everywhere
                raise WeightsError(f"{file}: not a readable safetensors file ({error})") from error
            for name in opened.keys():  # noqa: SIM118 (no mapping)
                self._files[name] = opened

    def _paths(self) -> Iterator[Path]:
        index = self.folder / INDEX
        if index.is_file():
            values, where = llama_config.read_json(index), str(index)
            places = json_objects.get(values, "weight_map", dict, where, WeightsError, {})
            names = sorted({json_objects.inside(n, where, WeightsError) for n in places.values()})
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
        """A tensor, or the slice `index` of it, in the file's dtype."""
        if not index:
            return self._files[name].get_tensor(name)
        return self._files[name].get_slice(name)[index]


def load(
    folder: str | os.PathLike[str], *, shardings: Tree = None, prefix: str = ""
) -> tuple[TextModel, Params]:
    """(model, float32 parameters) of a folder.

    shardings: tree of shardings like the parameters (`TextModel.init`); every device then reads
    only its part. Default: whole arrays in host memory (NumPy). prefix: of all published names.
    Raises WeightsError with every missing, unknown and mis-shaped name.
    """
    model = llama_config.read_config(folder)
    reader = Reader(folder)
    stored = {n.removeprefix(prefix): s for n, s in reader.shapes().items()}
    # a bare LlamaModel has no "model." in front
    bare = "norm.weight" in stored
    if bare:
        stored = {
            name if name.startswith("lm_head") else f"model.{name}": s for name, s in stored.items()
        }
    if model.tied:
        stored.pop("lm_head.weight", None)  # a copy of the embedding
    compare(stored, shapes(model), str(folder))

    def read(name: str, index: tuple[slice, ...] = ()) -> np.ndarray:
        raw = name.removeprefix("model.") if bare else name
        return np.asarray(reader.read(prefix + raw, index), np.float32)

    return model, _collect(model, read, shardings)


def from_published(model: TextModel, weights: Mapping[str, np.ndarray]) -> Params:
    """Parameters from published names and tensors in memory (see `published`)."""
    compare({name: np.shape(w) for name, w in weights.items()}, shapes(model), "weights")

    def read(name: str, index: tuple[slice, ...] = ()) -> np.ndarray:
        return np.asarray(weights[name], np.float32)[index]

    return _collect(model, read)


def _collect(model: TextModel, read: Read, shardings: Tree = None) -> Params:
    like = jax.eval_shape(model.init, jax.random.key(0))
    placed = None if shardings is None else leaves.flatten(shardings)
    flat: dict[str, Array] = {}
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


def assemble(source: Source, read: Read, index: tuple[slice, ...] | None = None) -> np.ndarray:
    """A leaf, or the slice `index` of it, from published tensors."""
    if index is None:
        tensors = [read(name) for name in source.names]
    else:
        layers = index[:1] if source.stacked else ()
        inner = index[1:] if source.stacked else index
        inner = inner[::-1] if source.transposed else inner
        names = source.names[layers[0]] if layers else source.names
        tensors = [read(name, tuple(inner)) for name in names]
    if source.transposed:
        tensors = [tensor.T for tensor in tensors]
    return np.stack(tensors) if source.stacked else np.ascontiguousarray(tensors[0])


def compare(
    stored: Mapping[str, tuple[int, ...]], needed: Mapping[str, tuple[int, ...]], where: str
) -> None:
    """Raises WeightsError with every missing, unknown and mis-shaped name of `stored`."""
    missing = sorted(set(needed) - set(stored))
    unknown = sorted(n for n in set(stored) - set(needed) if not n.endswith(_UNUSED))
    lines = [f"missing: {', '.join(missing)}"] if missing else []
    lines += [f"unknown: {', '.join(unknown)}"] if unknown else []
    lines += [
        f"{name} has shape {stored[name]}, {needed[name]} is needed"
        for name in sorted(set(stored) & set(needed))
        if tuple(stored[name]) != tuple(needed[name])
    ]
    if lines:
        raise WeightsError(
            f"{where}: weights do not fit {llama_config.CONFIG}\n  " + "\n  ".join(lines)
        )


def published(model: TextModel, params: Params) -> Iterator[tuple[str, np.ndarray]]:
    """(published name, tensor) of every weight. Raises WeightsError for unmerged adapters."""
    flat = leaves.flatten(params)
    adapters = [leaf for leaf in flat if leaf.rpartition("/")[2].startswith("lora_")]
    if adapters:
        raise WeightsError(f"adapters have no place in a plain checkpoint: {adapters[0]}, ...")
    for leaf, source in sources(model).items():
        value = np.asarray(flat[leaf])
        for layer, name in enumerate(source.names):
            tensor = value[layer] if source.stacked else value
            yield name, np.ascontiguousarray(tensor.T if source.transposed else tensor)


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
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for old in (folder / INDEX, *folder.glob("model*.safetensors")):
        old.unlink(missing_ok=True)  # of another model
    shards: list[dict[str, np.ndarray]] = [{}]
    held = total = 0
    for name, tensor in published(model, params):
        tensor = tensor.astype(types[dtype])
        if shards[-1] and held + tensor.nbytes > shard_bytes:
            shards.append({})
            held = 0
        shards[-1][name] = tensor
        held, total = held + tensor.nbytes, total + tensor.nbytes
    metadata = {"format": "pt"}  # other readers need it
    if len(shards) == 1:
        _save_whole(shards[0], folder / WEIGHTS, metadata)
    else:
        places: dict[str, str] = {}
        for number, shard in enumerate(shards, 1):
            file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            _save_whole(shard, folder / file, metadata)
            places |= dict.fromkeys(shard, file)
        index = {"metadata": {"total_size": total}, "weight_map": places}
        workdir.write_text(folder / INDEX, json.dumps(index, indent=2, sort_keys=True))
    values = llama_config.config_values(model) | {"dtype": dtype, "torch_dtype": dtype}
    text = json.dumps(values, indent=2, sort_keys=True) + "\n"
    workdir.write_text(folder / llama_config.CONFIG, text)


def _save_whole(tensors: Mapping[str, np.ndarray], file: Path, metadata: Mapping[str, str]) -> None:
    """Writes a safetensors file, which appears whole or not at all."""
    draft = file.with_name(file.name + ".tmp")
    try:
        _safetensors().numpy.save_file(dict(tensors), draft, dict(metadata))
        os.replace(draft, file)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def encoder_leaves(folder: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The folder's decoder as leaves of a llama encoder, by path in a model's parameters.

    The token embedding and the head are left out: the encoder reads item vectors. Raises
    WeightsError.
    """
    _, decoder = load(folder)
    flat = leaves.flatten({name: decoder[name] for name in ("layers", "final_norm")})
    return {f"{parameters.ENCODER}/{path}": value for path, value in flat.items()}


def _safetensors() -> ModuleType:
    try:
        import safetensors.numpy
    except ModuleNotFoundError as error:
        raise WeightsError(
            "the package safetensors is not installed: pip install 'jaxrec[hllm]'"
        ) from error
    return safetensors
