"""The report: headline, sections, conditions, the same in both forms; refusals."""

import html
import json
import re

import pytest

from jaxrec.errors import WorkdirError
from jaxrec.experiments import page
from tests.experiments import made_up


def text_of(page_html):
    """What a reader sees of a page, without white space."""
    body = re.sub(r"<(style|svg)\b.*?</\1>", "", page_html, flags=re.DOTALL)
    return "".join(html.unescape(re.sub(r"<[^>]+>", "", body)).split())


def test_headline_and_numbers_come_from_the_tables(report):
    text = (report / "README.md").read_text()
    assert text.startswith("# Tokens close 90.0 % [88.0, 92.0] of what full history adds, for 12")
    assert "- **12.5 %** FLOPs of a request; history of 24 events" in text
    assert "- **25.0 %** FLOPs of a request and of extending the state" in text
    assert "- **90.0 %** of the gap closed by MRR; 95 %: 88.0 to 92.0 %" in text
    assert "- **2,048 B** kept per user; 1,500 B vectors of the tokens" in text
    # the benchmark at 5 segments x 4 tokens: 24 of 100 FLOPs, twice that in time
    assert "- **24.0 %** FLOPs of a request; 20 events, 5 segments x 4 tokens" in text
    assert "- **48.0 %** wall time of a request; 20 events, 5 segments x 4 tokens; median" in text
    assert "quartiles 45.6 to 52.8 %" in text
    assert "- **24.0 %** time of a training step" in text


def test_both_forms_say_the_same(report):
    text, seen = (report / "README.md").read_text(), text_of((report / "index.html").read_text())
    for line in text.splitlines():
        if line.startswith(("![", "| ---")):
            continue
        for cell in line.strip("|").split("|"):
            words = re.sub(r"[#*`]|^ ?---$|^- |\(#.*\)|; history.*", "", cell)
            for part in re.split(r"[][;]", words):
                assert "".join(part.split()) in seen, line


def test_every_experiment_has_its_section(report):
    text = (report / "README.md").read_text()
    heads = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert heads == [
        "Table of gap",
        "Table of length",
        "Table of placement",
        "Table of experts",
        "Cost of a request and of a training step",
        "Protocol, hardware, versions",
        "This page",
    ]
    assert "- [Table of length](#table-of-length)" in text
    assert "**What does placement say?**" in text
    assert "A method & <a way>." in text
    assert "How to read it: Read `it`." in text
    assert "| recent window | recent window alone | 6 |" in text
    assert "| 12.5% |" in text
    assert "0.1100 [0.1000, 0.1200]" in text
    assert "![Placement: NDCG@10 against tokens stand](placement.png)" in text
    assert "python -m jaxrec.experiments length --config=x.py --output=results/x\n" in text
    assert re.search(r"jaxrec\.experiments verify .*/length\.json", text)
    # parts of a table are tables, without the column that tells them apart
    assert "| name | x | series | value |" in text
    assert "| name | mass |\n| --- | --- |\n| mass | 0.5000 |" in text


def test_costs_have_plots_tables_and_failed_cells(report):
    text = (report / "README.md").read_text()
    for name in ("latency", "flops", "memory", "state", "training"):
        assert f"](bench/{name}.png)" in text
        assert (report / "bench" / f"{name}.png").stat().st_size > 1000
    assert "### 20 events, 5 segments of 4, batch 1" in text
    row = "| compressed | 4 | 24.0% | 24.0% | 48.0% [45.6%, 52.8%] | 2.00 | 0.48 |"
    assert row in text
    assert "| full |  |  |  |  |  |  |  |  |  |  |  |  | out_of_memory |" in text
    assert "full: MemoryError: the plan needs 9 bytes" in text
    assert "input transfer" in text
    assert "--config=configs/bench_cpu.py" in text


def test_conditions_tell_what_differs_between_sources(report):
    text = (report / "README.md").read_text()
    assert "| dataset | synthetic |" in text
    devices = "8 x cpu (gap, length, experts, benchmark); gpu (placement)"
    assert f"| machine devices | {devices} |" in text
    of_jax = r"[\d.]+ \(gap, length, placement, experts\); 0.0.1 \("
    assert re.search(rf"\| version jax \| {of_jax}", text)
    assert "Not in this report: cost, tokens, segments, staleness, forms, longer, probe." in text


def test_a_page_says_what_its_gap_does_not_show(tmp_path):
    made_up.gap(tmp_path, recent=0.04)
    page.write(tmp_path, None)
    text = (tmp_path / "README.md").read_text()
    assert text.startswith("# Cannot tell: recent is not above popularity\n")
    assert "\nCannot tell, because recent is not above popularity (NDCG@10 0.0400 " in text
    assert "kept per user;" not in text
    assert "of the gap closed by" not in text


def test_a_page_without_gap_has_no_headline(tmp_path):
    made_up.length(tmp_path)
    page.write(tmp_path, None)
    text = (tmp_path / "README.md").read_text()
    assert text.startswith(f"# {page.TITLE}\n")
    assert "of the quality" not in text
    assert "Cost of a request" not in text


def test_what_is_no_report_is_refused(tmp_path):
    with pytest.raises(WorkdirError, match=r"no tables; make them with python -m jaxrec\.exp"):
        page.write(tmp_path, None)
    made_up.placement(tmp_path)
    with pytest.raises(
        WorkdirError, match=r"report\.json: cannot be read: .*no report of a benchmark"
    ):
        page.write(tmp_path, tmp_path)
    (tmp_path / "report.json").write_text(json.dumps({"command": "x"}))
    with pytest.raises(WorkdirError, match="config is missing; it is no report"):
        page.write(tmp_path, tmp_path)
    assert not (tmp_path / "index.html").exists()
