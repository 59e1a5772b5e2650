"""HTML of blocks: nothing from outside, valid nesting, colours and ids of the page."""

import html.parser
import re

from jaxrec.benchmark.drawing import COLOURS
from jaxrec.experiments import blocks, web
from jaxrec.experiments.blocks import Code, Contents, Grid, Heading, Text

EMPTY = ("meta", "br")


class Reader(html.parser.HTMLParser):
    """Checks nesting; keeps ids, links and what a browser would load."""

    def __init__(self):
        super().__init__()
        self.open, self.ids, self.links, self.loads = [], [], [], []

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        if tag not in EMPTY:
            self.open.append(tag)
        if "id" in values:
            self.ids.append(values["id"])
        if tag == "a":
            self.links.append(values["href"])
        self.loads += [values[k] for k in ("src", "srcset", "data", "poster") if k in values]
        if tag in ("link", "script", "iframe", "object"):
            self.loads.append(tag)
        if tag in ("image", "use"):
            self.loads.append(values.get("xlink:href", values.get("href")))

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in EMPTY:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def read(text):
    reader = Reader()
    reader.feed(text)
    assert not reader.open
    return reader


def test_the_page_is_whole_and_loads_nothing(report):
    text = (report / "index.html").read_text()
    reader = read(text)
    assert len(reader.ids) == len(set(reader.ids))
    assert {link.removeprefix("#") for link in reader.links} <= set(reader.ids)
    assert reader.loads  # glyphs of plots, the picture of the heat map
    for source in reader.loads:
        assert source.startswith("data:image/png;base64,") or source[1:] in reader.ids
    for place in re.findall(r"url\(([^)]*)\)", text):
        assert place.removeprefix("#") in reader.ids
    assert "@import" not in text
    assert text.count("<svg") == 4 + 5


def test_plots_take_the_colours_of_the_page(report):
    text = (report / "index.html").read_text()
    plots = "".join(re.findall(r"<svg.*?</svg>", text, re.DOTALL))
    assert "var(--c0)" in plots
    assert "#ffffff" not in plots
    assert not [colour for colour in COLOURS if colour in plots]
    assert "<metadata" not in text
    assert 'name="viewport"' in text


def test_text_is_escaped_and_numbers_are_right_aligned():
    grid = Grid(("name", "n", "text"), [("a|b", "0.1 [0.0, 0.2]", "x" * 60), ("<i>", "", "y")])
    made = [Heading("A 5 % [4, 6] title", 1), Text("`a<b` & c"), Contents(), Heading("Part"), grid]
    made.append(Code("python -m x > y"))
    text = web.page(made, {})
    read(text)
    assert "<code>a&lt;b</code> &amp; c" in text
    assert '<th scope="row">&lt;i&gt;</th><td class="n"></td><td class="wide">y</td>' in text
    assert '<td class="n">0.1 <small>[0.0, 0.2]</small></td>' in text
    assert "A 5\N{NO-BREAK SPACE}% <small>[4, 6]</small> title</h1>" in text
    assert "python -m x &gt; y" in text
    assert '<li><a href="#part">Part</a></li>' in text
    assert text.index("</header>") < text.index("<nav") < text.index('<h2 id="part">')
    plain = blocks.markdown(made)
    assert "| a\\|b | 0.1 [0.0, 0.2] |" in plain
    assert "- [Part](#part)" in plain
