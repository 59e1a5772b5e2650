"""HLLM (arXiv 2409.12740): items are what a language model makes of their texts.

    encoded = encode_catalog(config.model, prepared.texts, folder)
    init = starting_from(model.init, table_leaves(encoded.vectors))

The route for small hardware: the item tower is frozen, its vectors are a table
(`model.texts.model`), and the user tower, any encoder with compressed tokens, runs over a learned
projection of them. `model.texts.train` trains the tower, or adapters of it, with the rest
(`item_texts`, `training.texts`); the table is then what the tower made last. A state, serving and
evaluation are those of an ID model. New items get their vectors from text alone (`append_items`):
no training, no id. A trained tower becomes a Hugging Face folder:

    python -m jaxrec.interop.towers runs/hllm --output=tower
"""

import argparse
import dataclasses
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxrec.config import ModelConfig
from jaxrec.data import item_words
from jaxrec.errors import CheckpointError, ConfigError, WeightsError, WorkdirError
from jaxrec.interop import hllm as published
from jaxrec.interop import huggingface, llama_config
from jaxrec.items import text_vectors
from jaxrec.nn.item_tower import TOWER, ItemTower
from jaxrec.nn.llama import without_adapters
from jaxrec.runtime import checkpoint, leaves, workdir
from jaxrec.runtime.mesh import PLACEMENT
from jaxrec.types import Params

_NO_SPREAD = 1e-6  # a dimension that is the same for all items


def tower_of(config: ModelConfig) -> ItemTower:
    """The item tower of a configuration, from its folder's `config.json` alone.

    A tower that is trained computes as `model.dtype`, `model.attention` and `model.remat` say, a
    frozen one in float32. Raises WeightsError; ConfigError when texts are allowed to be longer
    than the model can read and when `model.item_width` is not the tower's width.
    """
    texts = config.texts
    text = llama_config.read_config(texts.model)
    if texts.max_tokens > text.context:
        raise ConfigError(
            f"model.texts.max_tokens={texts.max_tokens}: {texts.model} reads {text.context} words"
        )
    if (config.item_width or config.width) != text.config.width:
        raise ConfigError(
            f"model.item_width={config.item_width}: vectors of {texts.model} have "
            f"{text.config.width} numbers"
        )
    if texts.train != "frozen":
        adapters: dict[str, Any] = {}
        if texts.train == "lora":
            adapters = {"lora_rank": texts.lora_rank, "lora_alpha": texts.lora_alpha}
        computed = dataclasses.replace(
            text.config,
            dtype=config.dtype,
            attention=config.attention,
            remat=config.remat,
            llama=dataclasses.replace(text.config.llama, **adapters),
        )
        text = dataclasses.replace(text, config=computed, tied=True)  # a head is of no use
    return ItemTower(dataclasses.replace(text, placement=PLACEMENT), texts.pool)


def tower_weights(config: ModelConfig, tower: ItemTower) -> Params:
    """The tower's parameters in its folder; adapters are not among them.

    An embedding token that the folder does not have is drawn where the tower is trained, and
    refused with a ConfigError where it is not. Raises WeightsError.
    """
    texts = config.texts
    _, decoder = huggingface.load(texts.model)
    if tower.text.tied:
        decoder = {name: leaf for name, leaf in decoder.items() if name != "head"}
    if tower.end is None:
        return {"decoder": decoder}
    token = published.extras(texts.model).get("token")
    if token is not None:
        if token.shape != (tower.text.config.width,):
            raise ConfigError(f"{texts.model}: its embedding token has shape {token.shape}")
        return {"decoder": decoder, "token": token}
    if texts.train == "frozen":
        raise ConfigError(
            f"model.texts.pooling='token': {texts.model} has no trained embedding token "
            f"({published.EXTRAS}), use 'mean'"
        )
    return jax.device_get(tower.adopt(decoder, jax.random.key(0)))


def encode_catalog(
    config: ModelConfig,
    columns: Mapping[str, Sequence[str]] | None,
    folder: str | Path,
    *,
    params: Params | None = None,
    mesh: Mesh | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> text_vectors.Encoded:
    """Vectors of items 0..V from their texts (`Prepared.texts`), cached in `folder`.

    params: of the tower, without adapters; default: those in `model.texts.model`. Raises
    WeightsError, ConfigError, DataError.
    """
    texts = dataclasses.replace(config.texts, train="frozen", pooling=config.texts.pool)
    config = dataclasses.replace(config, texts=texts)
    composed = item_words.compose(columns, texts.fields, texts.prompt)
    tower = tower_of(config)
    params = tower_weights(config, tower) if params is None else params
    tokenizer = item_words.Tokenizer(texts.model, tower.text.vocabulary)
    rows = texts.rows * (1 if mesh is None else mesh.size)
    encoded = text_vectors.encode(
        tower,
        jax.device_put(params) if mesh is None else params,
        tokenizer,
        composed,
        texts.cache_dir or folder,
        longest=texts.max_tokens,
        rows=rows,
        mesh=mesh,
        say=say,
    )
    say(
        f"item texts: {encoded.new:,} encoded, {encoded.known:,} known, {encoded.cut:,} cut to "
        f"{texts.max_tokens} words, {encoded.without_text - 1:,} items without text"
    )
    return encoded


def standards(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(mean [W], 1 / standard deviation [W]) of the items that have a text (a row not zero)."""
    present = vectors[np.any(vectors != 0, axis=1)].astype(np.float64)
    spread = present.std(0)
    scale = np.where(spread > _NO_SPREAD, 1 / np.maximum(spread, _NO_SPREAD), 0.0)
    return present.mean(0).astype(np.float32), scale.astype(np.float32)


def table_leaves(vectors: np.ndarray, standardize: bool = True) -> dict[str, np.ndarray]:
    """The leaves of a model's parameters that hold vectors [V + 1, W] of texts.

    standardize: the model brings them to mean 0 and spread 1 per dimension.
    """
    width = vectors.shape[1]
    mean, scale = np.zeros(width, np.float32), np.ones(width, np.float32)
    if standardize:
        mean, scale = standards(vectors)
    return {"item_embedding": filled(vectors, mean), "item_mean": mean, "item_scale": scale}


def filled(vectors: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """The table of vectors [V + 1, W], float32.

    An item without text stands at the mean of all items: it is neither liked nor disliked.
    """
    absent = ~np.any(vectors != 0, axis=1, keepdims=True)
    return np.where(absent, mean[None], vectors).astype(np.float32)


def append_items(params: Params, vectors: np.ndarray) -> Params:
    """Parameters that know more items: rows V + 1, V + 2, ... get vectors [N, W] of texts.

    Nothing else changes; the new items are scored by text alone.
    """
    table, mean = params["item_embedding"], params["item_mean"]
    if vectors.ndim != 2 or vectors.shape[1] != table.shape[1]:
        raise ValueError(
            f"vectors have shape {vectors.shape}: the table has rows of {table.shape[1]} numbers"
        )
    absent = ~np.any(vectors != 0, axis=1, keepdims=True)
    rows = jnp.where(absent, mean[None], vectors)
    return {**params, "item_embedding": jnp.concatenate([table, rows.astype(table.dtype)])}


def scale_leaf(folder: str) -> dict[str, np.ndarray]:
    """The learned scale of logits that a published item tower came with; none: empty."""
    scale = published.extras(folder).get("scale")
    return {} if scale is None else {"logit_scale": np.log(scale)}


def user_leaves(folder: str) -> dict[str, np.ndarray]:
    """The leaves of a llama encoder from a Hugging Face folder; its word embedding is unused."""
    _, decoder = huggingface.load(folder)
    flat = leaves.flatten({k: decoder[k] for k in ("layers", "final_norm")})
    return {f"compressor/encoder/{name}": value for name, value in flat.items()}


def starting_from(
    init: Callable[[jax.Array], Params], given: Mapping[str, np.ndarray]
) -> Callable[[jax.Array], Params]:
    """`init` with some leaves (path -> value) taken from memory instead of drawn.

    The values are fetched when the parameters are made; they are no constants of the compiled
    program. Raises ValueError with every path that the model does not have and every shape that
    differs.
    """

    def start(rng: jax.Array) -> Params:
        params = init(rng)
        flat = leaves.flatten(params)
        wrong = [f"{name}: not in the model" for name in given if name not in flat]
        wrong += [
            f"{name} has shape {np.shape(value)}, the model's is {tuple(flat[name].shape)}"
            for name, value in given.items()
            if name in flat and tuple(flat[name].shape) != np.shape(value)
        ]
        if wrong:
            raise ValueError("given parameters do not fit the model:\n  " + "\n  ".join(wrong))
        for name, value in given.items():
            shape = jax.ShapeDtypeStruct(flat[name].shape, flat[name].dtype)
            flat[name] = jax.pure_callback(lambda v=value, s=shape: np.asarray(v, s.dtype), shape)
        return jax.tree.unflatten(jax.tree.structure(params), list(flat.values()))

    return start


def export(run: Path, output: Path, dtype: str = "float32", which: str = "best") -> int:
    """Writes the item tower of a run as a folder for `model.texts.model`; returns the step.

    Adapters are added to what they adapt. which: as in `checkpoint.load_params`. Raises
    WorkdirError, CheckpointError, WeightsError; ConfigError where no tower was trained.
    """
    config = workdir.load_config(run).model
    if config.texts.train == "frozen":
        raise ConfigError(
            f"{run}: model.texts.train='frozen', its item tower is {config.texts.model}"
        )
    tower = tower_of(config)
    like = jax.eval_shape(tower.init, jax.random.key(0))
    step, params = checkpoint.load_params(run / workdir.CHECKPOINTS, like, which, TOWER)
    text, plain = tower.text, dataclasses.replace(tower.text.config.llama, lora_rank=0)
    decoder = without_adapters(params["decoder"], text.config.llama)
    text = dataclasses.replace(text, config=dataclasses.replace(text.config, llama=plain))
    huggingface.save(output, text, jax.device_get(decoder), dtype=dtype)
    shutil.copyfile(Path(config.texts.model) / "tokenizer.json", output / "tokenizer.json")
    published.save_extras(output, params.get("token"))
    return step


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m jaxrec.interop.towers",
        description="Writes a trained item tower as a folder.",
    )
    parser.add_argument("run", type=Path, help="workdir of train.py")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--checkpoint", default="best", help="best, latest or a step")
    args = parser.parse_args(argv)
    problems = (ConfigError, WeightsError, WorkdirError, OSError)
    try:
        step = export(args.run, args.output, args.dtype, args.checkpoint)
    except (*problems, CheckpointError) as error:
        parser.exit(2, f"error: {error}\n")
    print(f"{args.output}: item tower of step {step}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
