"""Says whether one evaluated run is better than another: paired bootstrap over their users.

    jaxrec compare runs/a runs/b

Both runs must have been evaluated (`jaxrec train` ends with that, `jaxrec evaluate` does it again)
on the same data, split and candidates; otherwise what differs is named. The first line is the
answer by NDCG@10; the table has NDCG@10, Recall@10 and the MRR of the whole catalog, with
differences and ratios. Intervals are 95 %, users drawn together, so that what makes a user easy
for both cancels. The rows compared are those of the runs' own models.
"""

import json
import pathlib
import shlex
from collections.abc import Sequence

from jaxrec.errors import ConfigError
from jaxrec.runtime.program import Parser


def parser() -> Parser:
    """The flags."""
    made = Parser("jaxrec compare", __doc__ or "")
    made.add_argument("runs", nargs="*", metavar="RUN", help="folders of two evaluated runs")
    made.add_argument("--row", default="", help="this row of both, such as popularity")
    made.add_argument("--rows", default="", help="A,B: row A of the first and B of the second")
    made.add_argument("--samples", type=int, default=2000, help="resamples of the bootstrap")
    made.add_argument("--seed", type=int, default=0, help="of the bootstrap")
    made.add_argument("--output", default="", help="also keep the comparison, as JSON")
    return made


def main(argv: Sequence[str]) -> int:
    """`jaxrec compare`; returns its exit status."""
    args = parser().parse_args(argv)
    if len(args.runs) != 2:
        raise ConfigError(
            f"two runs are needed, given {len(args.runs)}: jaxrec compare runs/a runs/b"
        )
    if args.samples < 100:
        raise ConfigError(f"--samples={args.samples}: an interval needs 100 or more")
    chosen = (args.row, args.row)
    if args.rows:
        first, comma, second = args.rows.partition(",")
        if args.row or not comma or "," in second:
            raise ConfigError(f"--rows={args.rows}: two rows as A,B are needed, and no --row")
        chosen = (first.strip(), second.strip())

    from jaxrec.evaluation import comparison, rank_file, report  # behind the mistakes in flags
    from jaxrec.runtime import workdir

    a, b = (
        comparison.side(run, rank_file.load(pathlib.Path(run)), row)
        for run, row in zip(args.runs, chosen, strict=True)
    )
    value = comparison.compare(a, b, args.samples, args.seed)
    names = comparison.titles(a, b)
    answer = comparison.verdict(names, value.metrics)
    print(f"{answer}\n\n{comparison.table(names, (a, b), value)}")
    if args.output:
        output = pathlib.Path(args.output)
        output.parent.mkdir(parents=True, exist_ok=True)
        facts = {
            "command": f"jaxrec compare {shlex.join(argv)}",
            "verdict": answer,
            "runs": {key: {"run": s.name, "row": s.row} for key, s in (("a", a), ("b", b))},
            "users": value.users,
            "targets": value.targets,
            "metrics": {name: row._asdict() for name, row in value.metrics.items()},
        }
        workdir.write_text(output, json.dumps(report.to_json(facts), indent=2) + "\n")
    return 0
