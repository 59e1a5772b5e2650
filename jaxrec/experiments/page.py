"""The report as an HTML page and as Markdown, from a folder of tables and a benchmark's folder.

Nothing is typed by hand: every number comes from `<experiment>.json` and `report.json`.
"""

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from jaxrec.benchmark import drawing, grid_report
from jaxrec.errors import WorkdirError
from jaxrec.experiments import blocks as doc
from jaxrec.experiments import headline, plots, registry, result_table, settings, verdict, web
from jaxrec.experiments.blocks import Block
from jaxrec.runtime import workdir
from jaxrec.types import Json
from jaxrec.untrusted import json_objects

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "What compressing user histories saves, and what it costs"
# titles of columns; other columns are shown by their names
TITLES = {
    "recall@10": "Recall@10",
    "ndcg@10": "NDCG@10",
    "recall of full": "Recall@10 / full",
    "ndcg of full": "NDCG@10 / full",
    "ms": "milliseconds",
    "ms of full": "time / full",
    "mrr": "MRR",
    "recall@10 closed": "gap closed, Recall@10",
    "ndcg@10 closed": "gap closed, NDCG@10",
    "mrr closed": "gap closed, MRR",
    "recall@10 gap": "gap, Recall@10",
    "ndcg@10 gap": "gap, NDCG@10",
    "mrr gap": "gap, MRR",
    "recall@10 without gap": "resamples without gap, Recall@10",
    "ndcg@10 without gap": "resamples without gap, NDCG@10",
    "mrr without gap": "resamples without gap, MRR",
    "recall@10 of fewer": "Recall@10 / fewer steps",
    "ndcg@10 of fewer": "NDCG@10 / fewer steps",
    "mrr of fewer": "MRR / fewer steps",
    "mflop request": "MFLOP per request",
    "flops of full": "FLOPs / full",
    "mflop extend per event": "MFLOP of extending, per event",
    "amortised of full": "FLOPs with extending / full",
    "state bytes": "state, bytes",
    "token bytes": "of it tokens",
    "remembered bytes": "of it remembered events",
    "pending bytes": "of it pending events",
    "segment size": "events per segment",
    "history": "events",
}
# what a benchmark writes, of what type
REPORT: Mapping[str, type[object]] = {
    "command": str,
    "config": dict,
    "machine": dict,
    "rows": list,
    "timing": str,
}
INTRO = (
    "A transformer that recommends from a history of N events attends over all of them at every "
    "request. Here old events are compressed, segment by segment, into a few learned tokens whose "
    "keys and values are kept per user. This page says what that saves and what it costs in "
    "quality; every figure has the command that makes it."
)


def write(output: pathlib.Path, bench: pathlib.Path | None) -> None:
    """Writes `index.html`, `README.md` and the plots of a folder of tables.

    bench: folder of `python -m jaxrec.benchmark`; its own plots are linked, and drawn there
    where they are missing. Raises WorkdirError where there is nothing to report, ConfigError
    where matplotlib is not installed.
    """
    tables = load(output)
    report = None if bench is None else load_bench(bench)
    if not tables and report is None:
        raise WorkdirError(
            f"{output}: no tables; make them with python -m jaxrec.experiments all "
            f"--config=configs/experiments_quick.py --output={output}"
        )
    output.mkdir(parents=True, exist_ok=True)
    figures: dict[str, Figure] = {}
    for table_value in tables:
        with json_objects.taken_apart(output / f"{table_value['experiment']}.json", WorkdirError):
            figures |= plots.figures(table_value)
    for file, figure in figures.items():
        drawing.save(figure, output / file)
    bench_files = {}
    if report is not None and bench is not None:
        with json_objects.taken_apart(bench / "report.json", WorkdirError):
            bench_figures = grid_report.figures(report["rows"])
        for name, figure in bench_figures.items():
            file = bench_files[name] = f"{os.path.relpath(bench, output)}/{name}.png"
            figures[file] = figure
            if not (output / file).is_file():
                drawing.save(figure, output / file)
    with json_objects.taken_apart(output, WorkdirError):
        blocks = document(tables, report, bench_files, settings.relative(str(output)))
    workdir.write_text(output / "README.md", doc.markdown(blocks))
    pictures = {file: drawing.svg(figure) for file, figure in figures.items()}
    workdir.write_text(output / "index.html", web.page(blocks, pictures))


def load(folder: pathlib.Path) -> list[Json]:
    """The tables of a folder, in the registry's order."""
    files = [folder / f"{name}.json" for name in registry.EXPERIMENTS]
    return [result_table.read(file) for file in files if file.is_file()]


def load_bench(folder: pathlib.Path) -> Json:
    """`report.json` of a benchmark's folder; raises WorkdirError for anything else."""
    file = folder / "report.json"

    def refuse(text: str) -> WorkdirError:
        return WorkdirError(
            f"{text}; it is no report of a benchmark: make it with python -m jaxrec.benchmark "
            f"--config=configs/bench_cpu.py --output={folder}"
        )

    report = json_objects.read(file, refuse)
    for key, kind in REPORT.items():
        json_objects.get(report, key, kind, str(file), refuse)
    return report


def document(
    tables: Sequence[Json], report: Json | None, bench_files: Mapping[str, str], folder: str
) -> list[Block]:
    """The whole report.

    bench_files: PNG file of every plot of the benchmark, by `grid_report.PLOTS` name.
    folder: of the tables, as commands name it.
    """
    blocks: list[Block] = [*top(tables, report), doc.Contents()]
    for table_value in tables:
        blocks += experiment(table_value, folder)
    if report is not None:
        blocks += costs(report, bench_files)
    return blocks + conditions(tables, report, folder)


def top(tables: Sequence[Json], report: Json | None) -> list[Block]:
    """Title, headline and headline numbers.

    The title is what the table `gap` allows to say; without it the title claims nothing.
    """
    gap = next((t for t in tables if t["experiment"] == "gap"), None)
    if gap is None:
        blocks: list[Block] = [doc.Heading(TITLE, 1), doc.Text(INTRO)]
    else:
        found = verdict.verdict(gap["rows"])
        blocks = [
            doc.Heading(found.title, 1),
            *([] if found.title == found.sentence else [doc.Text(f"{found.sentence}.")]),
            doc.Text(
                f"Measured on {gap['protocol']['dataset']} by {verdict.METRICS[verdict.METRIC]}, "
                "with models trained on the recent window alone, on compressed and on full "
                "history. Intervals are 95 %, over users and seeds; FLOPs are counted from the "
                "layout."
            ),
            doc.Text(INTRO),
        ]
        if found.told:
            blocks += [doc.Heading("What tokens keep, and what it costs", 3)]
            blocks += [doc.Figures(headline.tiles(gap))]
    cost = next((t for t in tables if t["experiment"] == "cost"), None)
    if cost is not None:
        blocks += [doc.Heading("What these models take on this machine", 3)]
        blocks += [doc.Figures(headline.cost_tiles(cost["rows"]))]
    if report is not None and (tiles := headline.bench_tiles(report["rows"])):
        blocks += [
            doc.Heading("Measured at the paper's 5 segments x 4 tokens", 3),
            doc.Text("Shares of full history in the same run of the benchmark."),
            doc.Figures(tiles),
        ]
    return blocks


def grid(rows: Sequence[Json]) -> doc.Grid:
    """A table's rows without columns that are empty or name the only series."""
    heads, lines = result_table.grid(rows)
    kept = [
        i
        for i, head in enumerate(heads)
        if any(line[i] for line in lines)
        and not (head in ("series", "part") and len({line[i] for line in lines}) == 1)
    ]
    titles = [TITLES.get(heads[i], heads[i]) for i in kept]
    return doc.Grid(titles, [[line[i] for i in kept] for line in lines])


def experiment(value: Json, folder: str) -> list[Block]:
    """Question, method, plots, table, reading and commands of one experiment."""
    captions = [
        f"{p['title']}: {p['y_label']} against {p['x_label']}" if p["x_label"] else p["title"]
        for p in value["plots"]
    ]
    file = f"{folder}/{value['experiment']}.json"
    return [
        doc.Heading(value["title"]),
        doc.Text(value["question"], lead=True),
        doc.Text(value["method"]),
        doc.Pictures(list(zip(result_table.plot_files(value), captions, strict=True))),
        doc.Text(f"How to read it: {value['reading']}"),
        *(grid(rows) for rows in result_table.parts(value["rows"])),
        doc.Text(
            f"Numbers in brackets are {value.get('brackets', result_table.INTERVALS)}. The first "
            f"command makes this section (all columns: `{value['experiment']}.json`), the second "
            "makes its rows again and compares."
        ),
        doc.Code(f"{value['command']}\npython -m jaxrec.experiments verify {file}"),
    ]


def costs(report: Json, files: Mapping[str, str]) -> list[Block]:
    """The benchmark: plots (`files` by name), then a table per group of rows timed in turn."""
    labels = {name: label for name, _, _, label in grid_report.PLOTS}
    blocks: list[Block] = [
        doc.Heading("Cost of a request and of a training step"),
        doc.Text("What does each way to treat a long history cost on this machine?", lead=True),
        doc.Text(grid_report.hardware(report)),
        doc.Pictures(
            [
                (file, f"{labels[name]} against history, a line per method")
                for name, file in files.items()
            ]
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
        blocks += [
            doc.Heading(name, 3),
            doc.Grid(grid_report.HEADS, [grid_report.cells(row) for row in rows]),
        ]
        blocks += [doc.Text(f"{row['method']}: {row['error']}") for row in rows if row["error"]]
    return blocks


def conditions(tables: Sequence[Json], report: Json | None, folder: str) -> list[Block]:
    """Protocol, hardware and versions of all tables, with the tables named where they differ."""
    sources = {value["experiment"]: facts(value) for value in tables}
    if report is not None:
        sources["benchmark"] = {
            **flat("machine", report["machine"]),
            **flat("version", report.get("versions", {})),
        }
    keys = dict.fromkeys(key for known in sources.values() for key in known)
    blocks: list[Block] = [
        doc.Heading("Protocol, hardware, versions"),
        doc.Grid(("fact", "value"), [[key, _merged(sources, key)] for key in keys]),
    ]
    missing = [name for name in registry.ALL if name not in sources]
    if missing:
        blocks.append(doc.Text(f"Not in this report: {', '.join(missing)}."))
    return [
        *blocks,
        doc.Heading("This page"),
        doc.Text("Made from the tables of its folder, without training anything:"),
        doc.Code(f"python -m jaxrec.experiments report --output={folder} --bench=FOLDER"),
    ]


def _merged(sources: Mapping[str, Mapping[str, str]], key: str) -> str:
    """The value of a fact, or every value with the sources that have it."""
    by_value: dict[str, list[str]] = {}
    for name, known in sources.items():
        if known.get(key):
            by_value.setdefault(known[key], []).append(name)
    if len(by_value) == 1:
        return next(iter(by_value))
    return "; ".join(f"{value} ({', '.join(names)})" for value, names in by_value.items())


def facts(value: Json) -> dict[str, str]:
    """How a table was made, by fact."""
    return {
        **flat("", value["protocol"]),
        **flat("machine", value["machine"]),
        **flat("version", value["versions"]),
        "revision": value["git"] or "",
        "configuration": value["config_digest"],
    }


def flat(prefix: str, values: Json) -> dict[str, str]:
    """Facts as texts, empty ones left out.

    >>> flat("machine", {"cpu_count": 2, "name": ""})
    {'machine cpu count': '2'}
    """
    named = {f"{prefix} {key}".strip().replace("_", " "): value for key, value in values.items()}
    return {
        key: listed(value) if isinstance(value, list) else str(value)
        for key, value in named.items()
        if value not in (None, "")
    }


def listed(values: Sequence[object]) -> str:
    """A list in one line.

    >>> listed(["cpu", "cpu"]), listed([0, 1])
    ('2 x cpu', '0, 1')
    """
    if len(values) > 1 and len(set(values)) == 1:
        return f"{len(values)} x {values[0]}"
    return ", ".join(map(str, values))
