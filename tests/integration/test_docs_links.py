"""Relative links of the documentation lead to files, and to headings where they name one."""

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[2]
PAGES = sorted(
    page
    for pattern in ("*.md", "docs/*.md", "results/**/*.md", "benchmarks/**/*.md")
    for page in ROOT.glob(pattern)
)
LINK = re.compile(r"\]\(([^()\s]+)\)")
FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def links(page: pathlib.Path) -> list[str]:
    """Targets of the links of a page that do not lead to the web."""
    targets = LINK.findall(FENCED.sub("", page.read_text()))
    return [
        target for target in targets if "://" not in target and not target.startswith("mailto:")
    ]


def anchors(page: pathlib.Path) -> set[str]:
    """Anchors of the headings of a page, as repository hosts make them."""
    headings = re.findall(r"^#+ (.*)$", FENCED.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for target in links(page):
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        assert file.exists(), f"{target}: no such file"
        if anchor:
            assert anchor in anchors(file), f"{target}: no such heading"


def test_pages_are_found():
    assert ROOT / "README.md" in PAGES
    assert ROOT / "results" / "experiments" / "README.md" in PAGES


def test_every_plot_is_shown_by_a_page():
    shown = {(page.parent / target).resolve() for page in PAGES for target in links(page)}
    for plot in sorted((ROOT / "results").rglob("*.png")):
        assert plot in shown, f"{plot.relative_to(ROOT)}: no page shows it"
