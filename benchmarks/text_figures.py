"""Figures of texts and of HLLM as Markdown; `figures` puts them on the page."""

from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

from jaxrec.types import Json

Table: TypeAlias = Callable[[Sequence[str], Iterable[Sequence[str]]], str]

PARTS = ("all", "warm", "cold")
METRICS = ("ndcg@10", "recall@10", "recall@50", "mrr", "rank_share")


def text(table: Table, record: Json) -> str:
    """How the decoder continues a prompt, and packed against padded encoding."""
    text = record["generation"]
    paragraphs = [f"{text['prompt']!r} is continued with {text['continuation']!r}."]
    rows = []
    for row in record["rows"]:
        for name, way in row["ways"].items():
            rows.append(
                [
                    name,
                    f"{row['texts']:,}",
                    f"{row['words']:,}",
                    f"{row['median_words']:.0f} / {row['longest']}",
                    f"{way['computed_per_word']:.3f}",
                    f"{way['words_per_s']:,.0f}",
                    f"{way['median_s']:.1f} ({way['min_s']:.1f} to {way['max_s']:.1f})",
                ]
            )
    if rows:
        head = ["encoding", "texts", "words", "words of a text, median / longest"]
        head += ["positions computed per word", "words/s", "seconds"]
        paragraphs.append(table(head, rows))
        for row in record["rows"]:
            whole = row["catalog"]
            paragraphs.append(
                f"The whole catalog, {whole['texts']:,} texts of {whole['words']:,} words: "
                f"{whole['packed_per_word']:.3f} positions computed per word packed, "
                f"{whole['padded_per_word']:.2f} padded to the longest."
            )
        ratio = ", ".join(f"{row['speedup']:.1f}" for row in record["rows"])
        paragraphs.append(f"Packed over padded: {ratio} times as fast.")
    return "\n\n".join(paragraphs)


def parity(table: Table, record: Json) -> str:
    """Hidden states against transformers."""
    rows = [
        [
            row["way"],
            f"{row['positions']:,}",
            f"{row['largest_difference']:.1e}",
            f"{row['largest_number']:.3g}",
            f"{row['relative']:.1e}",
        ]
        for row in record["rows"]
    ]
    size = record["settings"]
    head = ["texts are read", "positions", "largest difference", "largest number", "relative"]
    facts = f"A decoder of {size['layers']} layers, width {size['width']}, float32."
    return f"{facts}\n\n{table(head, rows)}"


def hllm(table: Table, record: Json) -> str:
    """Runs of texts and of ids on the same targets: all, warm and cold ones."""
    facts = "; ".join(f"{name}: {value}" for name, value in record["protocol"].items())
    paragraphs = [f"{facts}. Cold: no event of the item in the training part."]
    for part in PARTS:
        rows = []
        for row in record["rows"]:
            metrics = row[part]
            if metrics["targets"]:
                cells = [_interval(metrics[name]) for name in METRICS]
                rows.append([row["run"], row["items"], row["history"], *cells])
        if rows:
            counted = next(row[part] for row in record["rows"] if row[part]["targets"])
            title = f"{part.capitalize()} targets: {counted['targets']:,} of {counted['users']:,}"
            paragraphs += [f"{title} users.", table(["run", "items", "history", *METRICS], rows)]
    pairs = [
        f"- {pair}: " + ", ".join(f"{name} {_interval(ratio)}" for name, ratio in ratios.items())
        for pair, ratios in record.get("comparisons", {}).items()
    ]
    if pairs:
        paragraphs += ["Ratios over the same users, all targets:", "\n".join(pairs)]
    paragraphs.append("rank_share: share of the catalog above the target, 0.5 at random.")
    return "\n\n".join(paragraphs)


def _interval(value: Json) -> str:
    return f"{value['mean']:.4f} ({value['low']:.4f} to {value['high']:.4f})"
