"""The figures under `results/` as one page; nothing in it is typed by hand.

    python -m benchmarks.figures results > docs/figures.md

Unknown files are left out; a missing file is a missing section.
"""

import argparse
import functools
import json
import pathlib
import sys
from collections.abc import Callable, Iterable, Sequence

from benchmarks import text_figures
from jaxrec.types import Json


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def milliseconds(timed: Json) -> str:
    """Median and range of a timing (`timing.interleaved`)."""
    low, high = timed["min_s"] * 1e3, timed["max_s"] * 1e3
    return f"{timed['median_s'] * 1e3:,.1f} ({low:,.1f} to {high:,.1f})"


def megabytes(count: float) -> str:
    """Bytes as megabytes."""
    return f"{count / 1e6:,.0f} MB"


def attention(record: Json) -> str:
    """Dense against blocked attention."""
    rows = []
    for row in record["rows"]:
        times, peak = row["times"], row["peak_bytes"]
        for passes in ("forward", "forward+backward"):
            rows.append(
                [
                    row["layout"],
                    row["kind"],
                    passes,
                    milliseconds(times[f"{passes} dense"]),
                    milliseconds(times[f"{passes} blocked"]),
                    f"{row['speedup'][passes]:.1f}",
                    f"{row['pairs_dense'] / row['pairs_blocked']:.1f}",
                    f"{megabytes(peak['dense'])} / {megabytes(peak['blocked'])}",
                    f"{row['largest_relative_difference']:.0e}",
                ]
            )
    head = ["layout", "attention", "", "dense, ms", "blocked, ms", "times faster", "fewer pairs"]
    return table([*head, "peak memory (both passes)", "difference"], rows)


def step(record: Json) -> str:
    """A training step, its components, and the memory of the full softmax."""
    rows = []
    for row in record["rows"]:
        share = row["share_of_blocked"]
        rows.append(
            [
                row["layout"],
                str(row["batch"]),
                milliseconds(row["times"]["dense"]),
                milliseconds(row["times"]["blocked"]),
                f"{row['blocked_over_dense']:.2f}",
                ", ".join(f"{name} {value:.0%}" for name, value in share.items()),
                " / ".join(megabytes(row["peak_bytes"][name]) for name in ("dense", "blocked")),
            ]
        )
    head = ["layout", "batch", "dense, ms", "blocked, ms", "ratio", "of the blocked step"]
    losses = [
        [
            f"{row['items']:,}",
            f"{row['positions']:,}",
            megabytes(row["temporary_bytes"]),
            megabytes(row["logits_bytes"]),
        ]
        for row in record["loss_memory"]
    ]
    return "\n\n".join(
        [
            table([*head, "peak memory"], rows),
            "Full softmax over the catalog, forward and backward:",
            table(["catalog", "positions", "temporary memory", "size of the logits"], losses),
        ]
    )


def serving(record: Json) -> str:
    """Latency of a request and the cost of an event."""
    names = ("full", "recent", "cached", "served")
    rows = []
    for row in record["rows"]:
        latency = row["latency"]
        cells = [
            f"{latency[n]['p50_s'] * 1e3:,.1f} / {latency[n]['p99_s'] * 1e3:,.1f}"
            for n in names
            if n in latency
        ]
        cells += ["-"] * (len(names) - len(cells))
        rate = f"{latency['cached']['users_per_s']:,.0f}"
        ratios = [f"{row['full_over_cached']:.1f}", f"{row['cached_over_recent']:.2f}"]
        rows.append([str(row["history"]), str(row["batch"]), *cells, rate, *ratios])
    head = ["history", "batch", *(f"{n}, ms p50 / p99" for n in names), "cached, users/s"]
    extends = [
        [f"{row['history']:,}", f"{row['seconds_per_event'] * 1e6:.1f}"] for row in record["extend"]
    ]
    return "\n\n".join(
        [
            table([*head, "full / cached", "cached / recent"], rows),
            "`served` is the whole of `recommend`, ids and store included. What one new event costs"
            " `extend`:",
            table(["history", "µs per event"], extends),
        ]
    )


def store(record: Json) -> str:
    """Throughput of the state store against plain ones."""
    kinds = record["rows"]
    names = list(kinds)
    rows = []
    for what in ("read", "cold read", "write", "update"):
        label = f"{what}, {kinds['store'][what]['users']:,} users"
        rows.append([label, *(f"{kinds[n][what]['users_per_s']:,.0f}" for n in names)])
    ours = kinds["store"]
    settings = record["settings"]
    text = (
        f"{settings['users']:,} users of {settings['row_bytes']:,} bytes. Opening for writing "
        f"takes {ours['open_s'] * 1e3:.1f} ms (empty: {ours['open_s_empty'] * 1e3:.1f} ms), "
        f"iterating all users {ours['iterate_s']:.1f} s, compacting {ours['compact_s']:.1f} s; "
        f"{megabytes(ours['disk_bytes_after_compact'])} on disk after it for "
        f"{megabytes(ours['live_bytes'])} of rows; memory {megabytes(ours['memory_bytes'])}."
    )
    return f"{table(['users/s', *names], rows)}\n\n{text}"


def encodings(record: Json) -> str:
    """Bytes and quality of the encodings of stored states."""
    rows = [
        [
            row["state"],
            row["form"],
            f"{row['row_bytes']:,}",
            f"{row['recall@10']:.4f}",
            f"{row['ndcg@10']:.4f}",
            f"{row['ranks_that_differ']} of {row['users']}",
        ]
        for row in record["rows"]
    ]
    head = ["state", "numbers", "bytes per user", "Recall@10", "NDCG@10", "ranks that differ"]
    return table(head, rows)


def aot(record: Json) -> str:
    """Memory, traffic, roofline and heaviest operations of compiled functions."""
    rows, heaviest = [], []
    for row in record["rows"]:
        if "memory" not in row:  # the compiler gave up
            rows.append([row["function"], f"does not fit: {row['error']}", *["-"] * 5])
            continue
        moved = ", ".join(
            f"{kind} {megabytes(traffic['bytes'])}" for kind, traffic in row["collectives"].items()
        )
        times = row["roofline"]
        resources = ("compute", "dots", "memory", "network")
        rows.append(
            [
                row["function"],
                f"{row['memory']['total'] / 2**30:.1f} of {row['memory_capacity'] / 2**30:.0f} GiB",
                f"{row['flops_per_chip'] / 1e9:,.0f} / {row['dot_flops'] / 1e9:,.0f}",
                f"{row['memory_traffic'] / 1e9:,.1f} GB",
                moved,
                " / ".join(f"{times[name + '_s'] * 1e3:.1f}" for name in resources),
                f"{times['share_of_peak']:.1%} ({times['bound']})",
            ]
        )
        heaviest += [
            [
                row["function"],
                f"{one['bytes'] / 1e9:.1f}",
                f"`{'/'.join(one['operation'].split('/')[-3:])}`",
                f"`{one['source']}`" if one["source"] else "",
            ]
            for one in row["heaviest_operations"][: 8 if row["function"] == "train" else 3]
        ]
    mesh = ", ".join(f"{name} {size}" for name, size in record["mesh"].items())
    users = record["settings"]["train.batch_size"]
    head = [
        *("function", "memory per chip", "GFLOP per chip: layout / dots", "memory traffic"),
        *("collectives", "ms: compute / dots / memory / network", "share of peak (bound)"),
    ]
    facts = f"Mesh: {mesh}; {record['items']:,} items; batch of {users:,} users."
    where = table(["function", "GB of memory traffic", "operation", "source"], heaviest)
    return f"{facts}\n\n{table(head, rows)}\n\nHeaviest operations:\n\n{where}"


# float32 numbers that table and optimizer keep of an item, by update; w: width of a row
KEPT = {"adagrad": "w + 1", "adam": "3 w", "adamw": "3 w"}


def sparse(record: Json) -> str:
    """Row updates by catalog size."""
    width = record["settings"]["width"]
    numbers = {"adagrad": width + 1, "adam": 3 * width, "adamw": 3 * width}
    rows = []
    for row in record["rows"]:
        update = row["update"]
        for items, timed in row["times"].items():
            size = row["bytes"][items]
            rows.append(
                [
                    update,
                    f"{int(items):,}",
                    milliseconds(timed),
                    megabytes(size["state"]),
                    megabytes((int(items) + 1) * numbers[update] * 4),
                    megabytes(size["temporaries"]),
                ]
            )
    head = ["update", "items", "step, ms", "parameters and state"]
    predicted = "; ".join(f"`{name}`: {KEPT[name]}" for name in dict.fromkeys(r[0] for r in rows))
    text = (
        "Predicted of the table and its state alone, numbers per item (w: width): "
        f"{predicted}. Slowest over fastest step: "
        + ", ".join(f"`{row['update']}` {row['ratio']:.2f}" for row in record["rows"])
        + "."
    )
    return f"{table([*head, 'predicted of the table', 'temporaries'], rows)}\n\n{text}"


def _plain(record: Json) -> str:
    """A table of all plain values; nested ones are only in the file."""
    rows = [
        {k: v for k, v in row.items() if not isinstance(v, dict | list)} for row in record["rows"]
    ]
    head = list(dict.fromkeys(key for row in rows for key in row))
    return table(head, [[_cell(row.get(key, "")) for key in head] for row in rows])


def _cell(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def long_serving(record: Json) -> str:
    """A process at its first line, in the middle and at the end."""
    rows = []
    for run in record["rows"]:
        kept = "never" if not run["compact_every"] else f"every {run['compact_every']} rounds"
        lines = run["rounds"]
        for line in (lines[0], lines[len(lines) // 2], lines[-1]):
            rows.append(
                [
                    kept,
                    f"{line['rounds']:,}",
                    megabytes(line["resident_bytes"]),
                    f"{line['python_blocks']:,}",
                    str(line["descriptors"]),
                    str(line["programs"]),
                    megabytes(line["disk_bytes"]),
                ]
            )
    head = ["compaction", "rounds", "memory", "Python blocks", "descriptors", "programs", "disk"]
    return table(head, rows)


SECTIONS: dict[str, tuple[str, Callable[[Json], str]]] = {
    "attention": ("Attention", attention),
    "step": ("A training step", step),
    "peers_speed": ("A training step beside the peers'", _plain),
    "serving": ("A request", serving),
    "long_serving": ("A process that serves for long", long_serving),
    "store": ("The store of user states", store),
    "forms": ("Forms of a user state", encodings),
    "multiprocess": ("Several processes", _plain),
    "sparse": ("Catalogs of growing size", sparse),
    "loader": ("The input pipeline", _plain),
    "prepare": ("Preparing data", _plain),
    "text": ("The item tower", functools.partial(text_figures.text, table)),
    "parity": ("The decoder against transformers", functools.partial(text_figures.parity, table)),
    "hllm": ("Texts against ids", functools.partial(text_figures.hllm, table)),
    "aot": ("Compiled ahead of time", aot),
}
HEAD = """# Figures

What the committed commands printed; `results/` holds the JSON. This page is made by
`python -m benchmarks.figures results > docs/figures.md`. Times compare within one table:
they come from one run, taken in turn. Medians, with the range in brackets.
"""


def page(folder: pathlib.Path) -> str:
    """The Markdown page of every known file in `folder`; sections in one order."""
    records = [(path.stem, json.loads(path.read_text())) for path in sorted(folder.glob("*.json"))]
    sections = [HEAD]
    for kind, (title, body) in SECTIONS.items():
        for name, record in records:
            if record.get("benchmark") != kind:
                continue
            heading = title if name == kind else f"{title}: {name.removeprefix(kind).strip('_')}"
            machine = record["machine"]
            made = (
                f"`{record['command']}`  \n{', '.join(sorted(set(machine['devices'])))}, "
                f"{machine['cpu_count']} cores, Python {machine['python']}, jax {machine['jax']}"
            )
            sections.append(f"## {heading}\n\n{made}\n\n{body(record)}\n")
    return "\n".join(sections)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.figures", description="The figures of a folder as Markdown."
    )
    parser.add_argument("folder", type=pathlib.Path, help="folder of benchmark JSON files")
    folder = parser.parse_args(argv).folder
    if not folder.is_dir():
        parser.error(f"{folder}: no such folder")
    sys.stdout.write(page(folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
