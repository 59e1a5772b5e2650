"""Hidden states of the decoder against transformers' LlamaModel with the same weights.

    python -m benchmarks.parity --model=smollm2 --output=results/parity.json

Both compute in float32. Ours reads texts alone, packed into one row, padded on either side, and in
two halves with cached keys and values. Needs torch and transformers beside jaxrec.
"""

import argparse
import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.benchmark import timing
from jaxrec.data import item_tokens
from jaxrec.interop import huggingface
from jaxrec.nn.text_model import Cache, TextModel
from jaxrec.types import Params

TEXTS = (
    "The capital of Italy is",
    "title: Toy Story (1995), genres: Adventure|Animation|Children|Comedy|Fantasy",
    "Compress the following sentence into embedding: department: GROCERY, brand: National",
    "Rome",
)


def expected(folder: str, texts: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Last hidden states [T, D] of every text by transformers."""
    import torch
    import transformers

    load: Any = transformers.LlamaModel.from_pretrained
    model = load(folder, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        outputs = [model(torch.as_tensor(words[None].astype(np.int64))) for words in texts]
    return [output.last_hidden_state[0].numpy() for output in outputs]


# (model, params, texts) -> last hidden states [T, D] of every text
Way: TypeAlias = Callable[[TextModel, Params, Sequence[np.ndarray]], list[np.ndarray]]


def alone(model: TextModel, params: Params, texts: Sequence[np.ndarray]) -> list[np.ndarray]:
    """One text per call, without padding."""
    outputs = []
    for words in texts:
        row, ones = words[None], np.ones((1, len(words)), np.int32)
        y, _ = model.hidden(params, row, ones, np.arange(len(words), dtype=np.int32)[None])
        outputs.append(np.asarray(y[0]))
    return outputs


def packed(model: TextModel, params: Params, texts: Sequence[np.ndarray]) -> list[np.ndarray]:
    """All texts in one row."""
    lengths = [len(words) for words in texts]
    segments = np.repeat(np.arange(1, len(texts) + 1, dtype=np.int32), lengths)
    positions = np.concatenate([np.arange(n, dtype=np.int32) for n in lengths])
    y, _ = model.hidden(params, np.concatenate(texts)[None], segments[None], positions[None])
    return np.split(np.asarray(y[0]), np.cumsum(lengths)[:-1])


def padded(
    left: bool, model: TextModel, params: Params, texts: Sequence[np.ndarray]
) -> list[np.ndarray]:
    """One text per row, all rows as long as the longest."""
    longest = max(len(words) for words in texts)
    row, segments, positions = (np.zeros((len(texts), longest), np.int32) for _ in range(3))
    places = []
    for number, words in enumerate(texts):
        start = longest - len(words) if left else 0
        places.append(slice(start, start + len(words)))
        row[number, places[-1]], segments[number, places[-1]] = words, 1
        positions[number, places[-1]] = np.arange(len(words))
    y, _ = model.hidden(params, row, segments, positions)
    return [np.asarray(y[number, place]) for number, place in enumerate(places)]


def cached(model: TextModel, params: Params, texts: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The first half of a text, then the rest with its keys and values cached."""
    outputs = []
    for words in texts:
        if len(words) < 2:
            outputs += alone(model, params, [words])
            continue
        cut, positions = len(words) // 2, np.arange(len(words), dtype=np.int32)[None]
        ones = np.ones_like(positions)
        first, (k, v) = model.hidden(params, words[None, :cut], ones[:, :cut], positions[:, :cut])
        past = Cache(k, v, jnp.ones((1, cut), bool))
        rest, _ = model.hidden(params, words[None, cut:], ones[:, cut:], positions[:, cut:], past)
        outputs.append(np.concatenate([first[0], rest[0]]))
    return outputs


WAYS: dict[str, Way] = {
    "alone": alone,
    "packed": packed,
    "padded on the right": functools.partial(padded, False),
    "padded on the left": functools.partial(padded, True),
    "cached": cached,
}


def compare(outputs: Sequence[np.ndarray], truth: Sequence[np.ndarray]) -> dict[str, float]:
    """Largest difference between hidden states, absolute and relative to the largest number."""
    pairs = list(zip(outputs, truth, strict=True))
    difference = max(float(np.abs(a - b).max()) for a, b in pairs)
    largest = max(float(np.abs(b).max()) for _, b in pairs)
    return {
        "positions": sum(len(b) for b in truth),
        "largest_difference": difference,
        "largest_number": largest,
        "relative": difference / largest,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.parity", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument("--model", required=True, help="Hugging Face folder")
    parser.add_argument("--output", default="", help="JSON file of the result")
    args = parser.parse_args()
    model, params = huggingface.load(args.model)
    tokenizer = item_tokens.Tokenizer(args.model, model.vocabulary)
    tokenized = tokenizer.tokenize(TEXTS, model.context)
    texts = np.split(tokenized.tokens, tokenized.offsets[1:-1])
    truth, placed, rows = expected(args.model, texts), jax.device_put(params), []
    for name, way in WAYS.items():
        rows.append({"way": name, **compare(way(model, placed, texts), truth)})
        row = rows[-1]
        print(
            f"{name}: largest difference {row['largest_difference']:.1e}, "
            f"{row['relative']:.1e} of the largest number",
            flush=True,
        )
    size = {"layers": model.config.layers, "width": model.config.width}
    timing.save(timing.report("benchmarks.parity", rows, settings=size), args.output)


if __name__ == "__main__":
    main()
