"""The report: one HTML page and the same as Markdown, from tables and a benchmark's folder.

Nothing is typed by hand: every number comes from `<experiment>.json` and `report.json`.
"""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from jaxrec.benchmark import grid_report
from jaxrec.errors import WorkdirError
from jaxrec.experiments import blocks as doc
from jaxrec.experiments import catalog, headline, plots, settings, table, web
from jaxrec.experiments.blocks import Block
from jaxrec.runtime import workdir

TITLE = "What compressing user histories saves, and what it costs"
BENCH = "bench_"  # names of the benchmark's plots in the report's folder
# words of columns for people; others are shown as they are
WORDS = {
    "recall@10": "Recall@10",
    "ndcg@10": "NDCG@10",
    "recall of full": "Recall@10 / full",
    "ndcg of full": "NDCG@10 / full",
    "mflop request": "MFLOP per request",
    "flops of full": "FLOPs / full",
    "state bytes": "state, bytes",
    "segment size": "events per segment",
    "history": "events",
}
INTRO = (
    "A transformer that recommends from a history of N events attends over all of them at every "
    "request. Here old events are compressed, segment by segment, into a few learned tokens whose "
    "keys and values are kept per user. This page says what that saves and what it costs in "
    "quality; every figure has the command that makes it."
)


def write(output: pathlib.Path, bench: pathlib.Path | None) -> None:
    """`index.html` and `README.md` in a folder of tables; draws the tables' plots anew.

    bench: folder of `python -m jaxrec.benchmark`. Raises WorkdirError where there is nothing to
    report, ConfigError where matplotlib is not installed.
    """
    tables = load(output)
    report = None if bench is None else load_bench(bench)
    if not tables and report is None:
        raise WorkdirError(
            f"{output}: no tables; make them with python -m jaxrec.experiments all "
            f"--config=configs/experiments_quick.py --output={output}"
        )
    output.mkdir(parents=True, exist_ok=True)
    for one in tables:
        plots.write(output, one)
    drawn = [] if report is None else grid_report.plot(report["rows"], output, BENCH)
    found = document(tables, report, drawn, settings.relative(str(output)))
    workdir.write_text(output / "README.md", doc.markdown(found))
    workdir.write_text(output / "index.html", web.page(found, output))


def load(folder: pathlib.Path) -> list[dict[str, Any]]:
    """The tables of a folder, in the catalog's order."""
    files = [folder / f"{name}.json" for name in catalog.EXPERIMENTS]
    return [table.read(file) for file in files if file.is_file()]


def load_bench(folder: pathlib.Path) -> dict[str, Any]:
    """`report.json` of a benchmark's folder; raises WorkdirError for anything else."""
    file = folder / "report.json"
    try:
        report = json.loads(file.read_text())
        missing = [k for k in ("command", "config", "machine", "rows", "timing") if k not in report]
    except (OSError, ValueError, TypeError) as error:
        raise WorkdirError(
            f"{file}: no report of a benchmark ({error}); make it with python -m jaxrec.benchmark "
            f"--config=configs/bench_cpu.py --output={folder}"
        ) from error
    if missing:
        raise WorkdirError(f"{file}: no report of a benchmark, it has no {missing[0]!r}")
    return dict(report)


def document(
    tables: Sequence[Mapping[str, Any]],
    report: Mapping[str, Any] | None,
    drawn: Sequence[str],
    folder: str,
) -> list[Block]:
    """The whole report. drawn: the benchmark's plots; folder: how commands name the tables'."""
    found: list[Block] = [*top(tables, report), doc.Contents()]
    for one in tables:
        found += experiment(one, folder)
    if report is not None:
        found += costs(report, drawn)
    return found + conditions(tables, report, folder)


def top(tables: Sequence[Mapping[str, Any]], report: Mapping[str, Any] | None) -> list[Block]:
    """Title, headline, the numbers to remember."""
    length = next((t for t in tables if t["experiment"] == "length"), None)
    main = None if length is None else headline.of(length)
    found: list[Block] = []
    if length is None or main is None:
        found += [doc.Heading(TITLE, 1), doc.Text(INTRO)]
    else:
        found += [
            doc.Heading(headline.sentence(main), 1),
            doc.Text(
                f"A request with compressed history against one with full history, both of "
                f"{main.history:,} events on {length['protocol']['dataset']}. Compute: FLOPs "
                "counted from the layout. Quality: Recall@10, with its 95 % interval over users "
                "and seeds."
            ),
            doc.Text(INTRO),
            doc.Heading("Quality and compute", 3),
            doc.Figures(headline.tiles(main)),
        ]
    if report is not None and (tiles := headline.bench_tiles(report["rows"])):
        found += [
            doc.Heading("Measured at the paper's 5 segments x 4 tokens", 3),
            doc.Text("Shares of full history in the same run of the benchmark."),
            doc.Figures(tiles),
        ]
    return found


def grid(rows: Sequence[Mapping[str, Any]]) -> doc.Grid:
    """A table's rows without the columns that say nothing: empty ones, and one series."""
    heads, lines = table.grid([dict(row) for row in rows])
    kept = [
        i
        for i, head in enumerate(heads)
        if any(line[i] for line in lines)
        and not (head in ("series", "part") and len({line[i] for line in lines}) == 1)
    ]
    shown = [WORDS.get(heads[i], heads[i]) for i in kept]
    return doc.Grid(shown, [[line[i] for i in kept] for line in lines])


def experiment(one: Mapping[str, Any], folder: str) -> list[Block]:
    """Question, method, plots, table, reading, commands."""
    shown = zip(plots.names(dict(one)), one["plots"], strict=True)
    file = f"{folder}/{one['experiment']}"
    return [
        doc.Heading(one["title"]),
        doc.Text(one["question"], lead=True),
        doc.Text(one["method"]),
        doc.Pictures(
            [(n, f"{p['title']}: {p['y_label']} against {p['x_label']}") for n, p in shown]
        ),
        doc.Text(f"How to read it: {one['reading']}"),
        *(grid(rows) for rows in table.parts(one["rows"])),
        doc.Text(
            "Numbers in brackets are 95 % intervals. The first command makes this section "
            f"(all columns: `{one['experiment']}.json`, `{one['experiment']}.csv`), the second "
            "makes its rows again and compares."
        ),
        doc.Code(f"{one['command']}\npython -m jaxrec.experiments verify {file}.json"),
    ]


def costs(report: Mapping[str, Any], drawn: Sequence[str]) -> list[Block]:
    """The benchmark: plots, then a table for everything that was timed in turn."""
    labels = {f"{BENCH}{file}": label for file, _, _, label in grid_report.PLOTS}
    found: list[Block] = [
        doc.Heading("Cost of a request and of a training step"),
        doc.Text("What does each way to treat a long history cost on this machine?", lead=True),
        doc.Text(grid_report.hardware(dict(report))),
        doc.Pictures(
            [(name, f"{labels[name]} against history, a line per method") for name in drawn]
        ),
        doc.Text(
            "How to read it: a line per method, requests of one user, both axes by powers; "
            "compressed methods with the most tokens measured. Time / FLOPs near 1 says that the "
            f"saving is real; above 1, that a request has costs of its own. {grid_report.SHARES}"
        ),
        doc.Text(report["timing"]),
        doc.Code(report["command"]),
    ]
    for name, rows in grid_report.groups(report["rows"]).items():
        found += [
            doc.Heading(name, 3),
            doc.Grid(grid_report.HEADS, [grid_report.cells(row) for row in rows]),
        ]
        found += [doc.Text(f"{row['method']}: {row['error']}") for row in rows if row["error"]]
    return found


def conditions(
    tables: Sequence[Mapping[str, Any]], report: Mapping[str, Any] | None, folder: str
) -> list[Block]:
    """Protocol, hardware, versions: of all tables, apart where they differ."""
    sources = {t["experiment"]: facts(t) for t in tables}
    if report is not None:
        sources["benchmark"] = {
            **flat("machine", report["machine"]),
            **flat("version", report.get("versions", {})),
        }
    lines = []
    for key in dict.fromkeys(k for known in sources.values() for k in known):
        by_value: dict[str, list[str]] = {}
        for name, known in sources.items():
            if known.get(key):
                by_value.setdefault(known[key], []).append(name)
        texts = [
            value if len(by_value) == 1 else f"{value} ({', '.join(names)})"
            for value, names in by_value.items()
        ]
        lines.append([key, "; ".join(texts)])
    found: list[Block] = [
        doc.Heading("Protocol, hardware, versions"),
        doc.Grid(("fact", "value"), lines),
    ]
    missing = [n for n in catalog.ALL if n not in sources]
    if missing:
        found.append(doc.Text(f"Not in this report: {', '.join(missing)}."))
    return [
        *found,
        doc.Heading("This page"),
        doc.Text("Made from the tables of its folder, without training anything:"),
        doc.Code(f"python -m jaxrec.experiments report --output={folder} --bench=FOLDER"),
    ]


def facts(one: Mapping[str, Any]) -> dict[str, str]:
    """What a table says about how it was made, flat."""
    return {
        **flat("", one["protocol"]),
        **flat("machine", one["machine"]),
        **flat("version", one["versions"]),
        "revision": one["git"] or "",
        "configuration": one["config_digest"],
    }


def flat(prefix: str, values: Mapping[str, Any]) -> dict[str, str]:
    """`{"machine cpu_count": "2"}`, empty values left out."""
    named = {f"{prefix} {key}".strip().replace("_", " "): value for key, value in values.items()}
    return {
        key: listed(value) if isinstance(value, list) else str(value)
        for key, value in named.items()
        if value not in (None, "")
    }


def listed(values: Sequence[Any]) -> str:
    """`8 x cpu` or `0, 1, 2`."""
    if len(values) > 1 and len(set(values)) == 1:
        return f"{len(values)} x {values[0]}"
    return ", ".join(map(str, values))
