"""Published HLLM checkpoints (ByteDance, arXiv 2409.12740) as Hugging Face folders.

    python -m jaxrec.interop.hllm pytorch_model.bin --base=TinyLlama-1.1B --output=hllm

A checkpoint is a torch file with the weights of both towers under `item_llm.` and `user_llm.`,
the learned embedding token `item_emb_tokens` and `logit_scale`. Its architecture is in the
`config.json` of the language model it was trained from (`--base`). The command writes the folders
`item/` and `user/`, which `jaxrec.interop.huggingface` reads, and `item/hllm.npz` with the token
[D] and the scale. Recipes name the folders as `model.texts.model` and `model.texts.user_model`.

Only this command needs torch. It reads the file with `weights_only=True`, so no code in the file
is run.
"""

import argparse
import dataclasses
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxrec.errors import WeightsError
from jaxrec.interop import huggingface, llama_config
from jaxrec.nn.text_model import TextModel
from jaxrec.runtime import workdir
from jaxrec.types import Array, Params
from jaxrec.untrusted import arrays

ITEM, USER, TOKEN, SCALE = "item_llm.", "user_llm.", "item_emb_tokens", "logit_scale"
EXTRAS = "hllm.npz"  # token and scale of an item tower, beside the files of a language model
_WRAPPERS = ("module.", "model.")  # prefixes of all names, from training wrappers


class Checkpoint(NamedTuple):
    """A published HLLM.

    model: of both towers. item, user: their parameters. token: float32 [D], the embedding token.
    scale: factor of cosine logits (not its logarithm).
    """

    model: TextModel
    item: Params
    user: Params
    token: np.ndarray
    scale: float


def read(path: str) -> dict[str, np.ndarray]:
    """Name -> float32 array of a torch file. Raises WeightsError."""
    try:
        import torch
    except ModuleNotFoundError as error:
        raise WeightsError(f"{path}: reading a torch file needs the package torch") from error
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip and runtime errors
        line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise WeightsError(f"{path}: not a torch file of plain weights ({line})") from error
    if not isinstance(state, dict):
        raise WeightsError(f"{path}: holds a {type(state).__name__}, a state dict is needed")
    for name in ("state_dict", "module"):  # where trainers put it beside other values
        if isinstance(state.get(name), dict):
            state = state[name]
    tensors = {k: v for k, v in state.items() if hasattr(v, "detach")}
    return {k: v.detach().to(torch.float32).numpy() for k, v in tensors.items()}


def convert(state: Mapping[str, np.ndarray], base: TextModel) -> Checkpoint:
    """Towers of a state dict whose language models are `base`.

    Heads are optional in both towers, and so is the token embedding of the user tower, which does
    not use it. Raises WeightsError with every missing, unknown and mis-shaped name.
    """
    state = _unwrap(state)
    names = set(state)
    for name in (TOKEN, SCALE):
        if name not in state:
            raise WeightsError(f"no {name} in the checkpoint; found {_some(names)}")
    unknown = [n for n in names if not n.startswith((ITEM, USER)) and n not in (TOKEN, SCALE)]
    if unknown:
        raise WeightsError(f"unknown names in the checkpoint: {_some(unknown)}")
    model = dataclasses.replace(base, tied=True)  # towers give vectors, a head is unused
    token = np.asarray(state[TOKEN], np.float32).reshape(-1)
    if token.shape != (base.config.width,):
        raise WeightsError(
            f"{TOKEN} has shape {np.shape(state[TOKEN])}: one vector of {base.config.width} "
            "numbers is needed"
        )
    item, user = (_tower(state, prefix, model) for prefix in (ITEM, USER))
    scale = float(np.exp(np.asarray(state[SCALE], np.float64).reshape(-1)[0]))
    return Checkpoint(model, item, user, token, scale)


def _tower(state: Mapping[str, np.ndarray], prefix: str, model: TextModel) -> Params:
    weights = {n.removeprefix(prefix): v for n, v in state.items() if n.startswith(prefix)}
    if "norm.weight" in weights:  # a bare decoder
        weights = {n if n.startswith("lm_head") else f"model.{n}": v for n, v in weights.items()}
    weights.pop("lm_head.weight", None)
    embedding = "model.embed_tokens.weight"
    if prefix == USER and embedding not in weights:
        weights[embedding] = np.zeros((model.vocabulary, model.config.width), np.float32)
    shapes = {f"{prefix}{name}": np.shape(value) for name, value in weights.items()}
    needed = {f"{prefix}{name}": shape for name, shape in huggingface.shapes(model).items()}
    huggingface.compare(shapes, needed, prefix.rstrip("."))
    kept = {name: weights[name] for name in huggingface.shapes(model)}
    return huggingface.from_published(model, kept)


def _unwrap(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    for prefix in _WRAPPERS:
        if state and all(name.startswith(prefix) for name in state):
            return {name.removeprefix(prefix): value for name, value in state.items()}
    return dict(state)


def _some(names: Iterable[str]) -> str:
    ordered = sorted(names)
    return ", ".join(ordered[:8]) + (f" and {len(ordered) - 8} more" if len(ordered) > 8 else "")


def save(checkpoint: Checkpoint, base: str, output: str, dtype: str = "bfloat16") -> None:
    """Writes `item/` (with the base's tokenizer, token and scale) and `user/`."""
    folder = Path(output)
    for name, params in (("item", checkpoint.item), ("user", checkpoint.user)):
        huggingface.save(folder / name, checkpoint.model, params, dtype=dtype)
    tokenizer = Path(base) / "tokenizer.json"
    if tokenizer.is_file():
        shutil.copyfile(tokenizer, folder / "item" / tokenizer.name)
    save_extras(folder / "item", checkpoint.token, checkpoint.scale)


def save_extras(
    folder: str | os.PathLike[str], token: Array | None = None, scale: float | None = None
) -> None:
    """Writes the embedding token [D] and the scale of logits, if any, beside an item tower."""
    values = {"token": token, "scale": scale}
    kept = {name: np.asarray(x, np.float32) for name, x in values.items() if x is not None}
    with workdir.replacing(Path(folder) / EXTRAS) as stream:
        np.savez(stream, allow_pickle=False, **kept)


def extras(folder: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """`token` [D] and `scale` [] beside an item tower, where stored. Raises WeightsError."""
    file = Path(folder) / EXTRAS
    if not file.is_file():
        return {}
    saved = arrays.read_npz(file, WeightsError)
    return {name: saved[name] for name in ("token", "scale") if name in saved}


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m jaxrec.interop.hllm",
        description="Converts a published HLLM checkpoint to two Hugging Face folders.",
    )
    parser.add_argument("file", help="torch file of the checkpoint")
    parser.add_argument("--base", required=True, help="folder of the language model it came from")
    parser.add_argument("--output", required=True, help="folder to write")
    parser.add_argument("--dtype", default="bfloat16", choices=("float32", "bfloat16", "float16"))
    flags = parser.parse_args(argv)
    try:
        checkpoint = convert(read(flags.file), llama_config.read_config(flags.base))
        save(checkpoint, flags.base, flags.output, flags.dtype)
    except (WeightsError, OSError) as error:
        parser.exit(2, f"error: {error}\n")
    config = checkpoint.model.config
    print(
        f"{flags.output}: item and user towers of {config.layers} layers, width {config.width}, "
        f"scale of logits {checkpoint.scale:.2f}"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
