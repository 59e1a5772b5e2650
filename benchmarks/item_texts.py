"""The item tower on real texts: does it continue a prompt, and what does packing save?

    python -m benchmarks.item_texts --model=smollm2 --items=items.parquet \
        --columns title genres --output=results/text.json

Continues a prompt greedily with the decoder of a Hugging Face folder. Then the same texts are
encoded packed into rows and one per row, padded to the longest, timed in turn.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import jax
import numpy as np

from jaxrec.benchmark import timing
from jaxrec.data import item_tokens
from jaxrec.interop import huggingface
from jaxrec.nn.item_tower import ItemTower
from jaxrec.types import Json, Params

CATALOG_ROWS = 8  # rows per batch when a catalog is encoded (`model.texts.rows`)


def padded(words: item_tokens.TokenizedTexts, rows: int) -> list[item_tokens.PackedTexts]:
    """One text per row, every row as long as the longest text."""
    longest, batches = int(words.lengths.max()), []
    for start in range(0, len(words), rows):
        batch = item_tokens.PackedTexts(*(np.zeros((rows, longest), np.int32) for _ in range(3)))
        for row, text in enumerate(range(start, min(start + rows, len(words)))):
            content = words.tokens[words.offsets[text] : words.offsets[text + 1]]
            batch.tokens[row, : len(content)] = content
            batch.owner[row, : len(content)] = row + 1
            batch.positions[row, : len(content)] = np.arange(len(content))
        batches.append(batch)
    return batches


def packing(
    words: item_tokens.TokenizedTexts, rows: int, row_length: int, chunk: int = 512
) -> Json:
    """Positions computed per word of a whole catalog, packed and padded to the longest text.

    Batches are those of `towers.encode_catalog`, but nothing is encoded.
    """
    order, computed = np.random.default_rng(0).permutation(len(words)), 0
    for first in range(0, len(words), chunk):
        chosen = np.sort(order[first : first + chunk])
        computed += sum(b.tokens.size for b, _ in item_tokens.pack(words, chosen, rows, row_length))
    present = int(words.offsets[-1])
    return {
        "texts": len(words),
        "words": present,
        "packed_per_word": computed / present,
        "padded_per_word": len(words) * int(words.lengths.max()) / present,
    }


def measure(
    tower: ItemTower, params: Params, words: item_tokens.TokenizedTexts, args: argparse.Namespace
) -> Json:
    """Both encodings of the same texts: seconds, words per second, positions computed."""
    packed = [b for b, _ in item_tokens.pack(words, range(len(words)), args.rows, args.row_length)]
    ways = {"packed": packed, "padded": padded(words, args.padded_rows)}
    texts = max(int(b.owner.max()) for batches in ways.values() for b in batches)
    run = jax.jit(lambda p, b: tower.vectors(p, b.tokens, b.owner, b.positions, texts))
    present = int(words.offsets[-1])
    total = {}
    for name, batches in ways.items():
        sums = [np.asarray(run(params, b), np.float64).sum() for b in batches]
        total[name] = float(np.sum(sums))
    functions = {
        name: (lambda batches=batches: [run(params, b) for b in batches])
        for name, batches in ways.items()
    }
    times = timing.interleaved(functions, repeats=args.repeats, warmup=0)
    return {
        "texts": len(words),
        "words": present,
        "median_words": float(np.median(words.lengths)),
        "longest": int(words.lengths.max()),
        "ways": {
            name: {
                "positions": sum(b.tokens.size for b in batches),
                "computed_per_word": sum(b.tokens.size for b in batches) / present,
                "words_per_s": present / times[name]["median_s"],
                **times[name],
            }
            for name, batches in ways.items()
        },
        "speedup": times["padded"]["median_s"] / times["packed"]["median_s"],
        "relative_difference": abs(total["packed"] / total["padded"] - 1),
    }


def read_texts(path: str, columns: list[str], prompt: str) -> list[str]:
    """Distinct texts of an items table (parquet), or of the `texts.json` of prepared data."""
    if path.endswith(".json"):
        fields = json.loads(Path(path).read_text(encoding="utf-8"))
    else:
        import polars as pl

        table = pl.read_parquet(path).select(columns).fill_null("")
        fields = {name: [str(value) for value in table[name].to_list()] for name in columns}
    return item_tokens.distinct(item_tokens.compose(fields, columns, prompt))[0]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.item_texts", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument("--model", required=True, help="Hugging Face folder")
    parser.add_argument("--say", default="The capital of Italy is", help="text to continue")
    parser.add_argument("--count", type=int, default=16, help="words to generate")
    parser.add_argument("--items", default="", help="items: parquet or texts.json; empty: none")
    parser.add_argument("--columns", nargs="+", default=["title", "genres"])
    parser.add_argument("--prompt", default="")
    parser.add_argument("--texts", type=int, default=256, help="texts to encode, drawn at random")
    parser.add_argument("--longest", type=int, default=256)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--row_length", type=int, default=256)
    parser.add_argument("--padded_rows", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", default="", help="JSON file of the result")
    args = parser.parse_args()
    model, decoder = huggingface.load(args.model)
    decoder = jax.device_put(decoder)
    tokenizer = item_tokens.Tokenizer(args.model, model.vocabulary)
    prompt = tokenizer.tokenize([args.say], model.context - args.count).tokens
    start = time.monotonic()
    text = tokenizer.decode(model.generate(decoder, prompt, args.count).tolist())
    generation = {"prompt": args.say, "continuation": text, "seconds": time.monotonic() - start}
    print(f"{args.say!r} -> {text!r}", flush=True)
    rows = []
    if args.items:
        texts = read_texts(args.items, args.columns, args.prompt)
        whole = packing(tokenizer.tokenize(texts, args.longest), CATALOG_ROWS, args.row_length)
        print(f"all texts: {whole['packed_per_word']:.3f} positions computed per word", flush=True)
        chosen = np.random.default_rng(0).permutation(len(texts))[: args.texts]
        words = tokenizer.tokenize([texts[i] for i in chosen], args.longest)
        print(f"encoding {len(words):,} of {len(texts):,} texts both ways", file=sys.stderr)
        row = measure(ItemTower(model, "mean"), {"decoder": decoder}, words, args)
        row["catalog"] = whole
        rows.append(row)
        for name, way in row["ways"].items():
            print(
                f"{name}: {way['words_per_s']:.0f} words/s, "
                f"{way['computed_per_word']:.3f} positions computed per word"
            )
    facts = {k: v for k, v in vars(args).items() if k not in ("output", "model", "items")}
    report = timing.report(
        "benchmarks.item_texts", rows, kind="text", settings=facts, generation=generation
    )
    timing.save(report, args.output)


if __name__ == "__main__":
    main()
