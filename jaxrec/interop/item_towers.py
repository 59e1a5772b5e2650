"""The item tower of HLLM (arXiv 2409.12740): read from a folder, run over a catalog, exported.

    encoded = encode_catalog(config.model, prepared.texts, folder)
    init = starting_from(model.init, text_table.leaves(encoded.vectors))

A frozen tower (`model.texts.train=frozen`) runs once over the catalog; its vectors are the item
table, and the user tower, any encoder with compressed tokens, runs over a learned projection of
them. A trained tower, or its adapters, is a part of the training step
(`jaxrec.training.text_step`); the table then holds what the tower computed last. User states,
serving and evaluation are those of an ID model. A trained tower becomes a Hugging Face folder:

    python -m jaxrec.interop.item_towers runs/hllm --output=tower
"""

import argparse
import dataclasses
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from jaxrec.config import ModelConfig
from jaxrec.data import item_tokens
from jaxrec.errors import ConfigError, JaxrecError
from jaxrec.interop import hllm as published
from jaxrec.interop import huggingface, llama_config
from jaxrec.items import text_vectors
from jaxrec.model import parameters
from jaxrec.nn.item_tower import TOWER, ItemTower
from jaxrec.nn.llama import without_adapters
from jaxrec.runtime import checkpoint, workdir
from jaxrec.runtime.mesh import PLACEMENT
from jaxrec.types import Params


def tower_of(config: ModelConfig) -> ItemTower:
    """The item tower of a configuration, from its folder's `config.json` alone.

    A trained tower computes with `model.dtype`, `model.attention` and `model.remat`, a frozen one
    in float32. Raises WeightsError; ConfigError when `model.texts.max_tokens` exceeds the tower's
    context and when `model.item_width` is not the tower's width.
    """
    texts = config.texts
    text = llama_config.read_config(texts.model)
    if texts.max_tokens > text.context:
        raise ConfigError(
            f"model.texts.max_tokens={texts.max_tokens}: {texts.model} reads {text.context} tokens"
        )
    if (config.item_width or config.width) != text.config.width:
        raise ConfigError(
            f"model.item_width={config.item_width}: vectors of {texts.model} have "
            f"{text.config.width} numbers"
        )
    if texts.train != "frozen":
        llama = text.config.llama
        if texts.train == "lora":
            llama = dataclasses.replace(
                llama, lora_rank=texts.lora_rank, lora_alpha=texts.lora_alpha
            )
        trained = dataclasses.replace(
            text.config,
            dtype=config.dtype,
            attention=config.attention,
            remat=config.remat,
            llama=llama,
        )
        text = dataclasses.replace(text, config=trained, tied=True)  # the head is not used
    return ItemTower(dataclasses.replace(text, placement=PLACEMENT), texts.pool)


def tower_weights(config: ModelConfig, tower: ItemTower) -> Params:
    """The tower's parameters from its folder, without adapters.

    A folder without an embedding token: a trained tower gets a random one, a frozen tower raises
    ConfigError. Raises WeightsError.
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

    columns: name -> texts of items 0..V. params: of the tower, without adapters (default: those in
    the folder `model.texts.model`). mesh: batches are split over its devices. say: gets one line at
    a time. Raises WeightsError, ConfigError, DataError.
    """
    texts = dataclasses.replace(config.texts, train="frozen", pooling=config.texts.pool)
    config = dataclasses.replace(config, texts=texts)
    composed = item_tokens.compose(columns, texts.fields, texts.prompt)
    tower = tower_of(config)
    params = tower_weights(config, tower) if params is None else params
    tokenizer = item_tokens.Tokenizer(texts.model, tower.text.vocabulary)
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
        f"{texts.max_tokens} tokens, {encoded.without_text - 1:,} items without text"
    )
    return encoded


def scale_leaf(folder: str) -> dict[str, np.ndarray]:
    """The learned scale of logits beside a published item tower, by path; empty without one."""
    scale = published.extras(folder).get("scale")
    return {} if scale is None else {parameters.SCALE: np.log(scale)}


def export(run: Path, output: Path, dtype: str = "float32", which: str = "best") -> int:
    """Writes the item tower of a run as a folder for `model.texts.model`; returns the step.

    Adapters are merged into the matrices that they adapt. which: as in `checkpoint.load_params`.
    Raises WorkdirError, CheckpointError, WeightsError; ConfigError where no tower was trained.
    """
    config = workdir.load_config(run).model
    if config.texts.train == "frozen":
        raise ConfigError(
            f"{run}: model.texts.train='frozen', its item tower is {config.texts.model}"
        )
    tower = tower_of(config)
    like = jax.eval_shape(tower.init, jax.random.key(0))
    step, params = checkpoint.load_params(run / workdir.CHECKPOINTS, like, which, TOWER)
    text, llama = tower.text, tower.text.config.llama
    decoder = without_adapters(params["decoder"], llama)
    plain = dataclasses.replace(text.config, llama=dataclasses.replace(llama, lora_rank=0))
    text = dataclasses.replace(text, config=plain)
    huggingface.save(output, text, jax.device_get(decoder), dtype=dtype)
    shutil.copyfile(Path(config.texts.model) / "tokenizer.json", output / "tokenizer.json")
    published.save_extras(output, params.get("token"))
    return step


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m jaxrec.interop.item_towers",
        description="Writes a trained item tower as a folder.",
    )
    parser.add_argument("run", type=Path, help="workdir of train.py")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--checkpoint", default="best", help="best, latest or a step")
    args = parser.parse_args(argv)
    try:
        step = export(args.run, args.output, args.dtype, args.checkpoint)
    except (JaxrecError, OSError) as error:
        parser.exit(2, f"error: {error}\n")
    print(f"{args.output}: item tower of step {step}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
