"""The page in a real browser: it fits a phone, loads nothing, and shows something."""

import html
import json
import re
import shutil
import struct
import subprocess

import numpy as np
import pytest

BINARY = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(
    BINARY is None, reason="needs a browser: no chromium on PATH (Debian package chromium)"
)
FLAGS = """--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking
--disable-component-update --disable-sync --hide-scrollbars"""
PHONE, DESKTOP = 390, 1280
# a window is never as narrow as a phone: frames are
FRAME = '<iframe style="border:0;width:{}px;height:{}px" srcdoc="{}"></iframe>'
MEASURE = """<script>onload = () => {
  const found = [...document.querySelectorAll("iframe")].map(frame => {
    const page = frame.contentDocument, inside = page.documentElement;
    return { width: inside.clientWidth, needed: inside.scrollWidth,
      loaded: frame.contentWindow.performance.getEntriesByType("resource").map(e => e.name),
      wide: [...page.querySelectorAll("body *")].filter(e => !e.closest(".scroll, pre, svg")
        && e.getBoundingClientRect().right > inside.clientWidth + 1).map(e => e.outerHTML) };
  });
  document.body.insertAdjacentHTML("beforeend", "<pre id=found></pre>");
  document.getElementById("found").textContent = JSON.stringify(found);
}</script>"""


def browse(tmp_path, *arguments):
    """What the browser prints; to a file, as its helpers hold a pipe open after its end."""
    profile, printed = f"--user-data-dir={tmp_path / 'profile'}", tmp_path / "printed"
    with printed.open("w") as out:
        subprocess.run(
            [BINARY, *FLAGS.split(), profile, *map(str, arguments)],
            stdout=out,
            stderr=subprocess.DEVNULL,
            timeout=300,
            check=True,
        )
    return printed.read_text()


def picture(path):
    """[height, width, 3] of a screenshot."""
    from matplotlib import image

    return image.imread(path)[:, :, :3]


def test_the_page_fits_a_phone_and_loads_nothing(report, tmp_path):
    page = html.escape((report / "index.html").read_text())
    wide = html.escape("<div style='width:600px'>too wide</div><img src='http://x.invalid/y.png'>")
    frames = [(PHONE, page), (DESKTOP, page), (PHONE, wide)]
    file = tmp_path / "frames.html"
    body = "".join(FRAME.format(width, 800, content) for width, content in frames)
    file.write_text(f"<!DOCTYPE html><meta charset=utf-8><body>{body}{MEASURE}")
    dom = browse(tmp_path, "--dump-dom", file.as_uri())
    phone, desktop, bad = json.loads(
        html.unescape(re.search(r'<pre id="found">(.*?)</pre>', dom, re.DOTALL)[1])
    )
    assert (phone["width"], desktop["width"]) == (PHONE, DESKTOP)
    assert (phone["needed"], desktop["needed"]) == (PHONE, DESKTOP)
    assert phone["wide"] == desktop["wide"] == []
    assert phone["loaded"] == desktop["loaded"] == []
    # the same measurement does see a page that is too wide and asks a server
    assert bad["needed"] > PHONE
    assert bad["loaded"] == ["http://x.invalid/y.png"]


@pytest.mark.parametrize("width", [PHONE, DESKTOP])
def test_screenshots_show_the_page(report, tmp_path, width):
    page = (report / "index.html").read_text()
    file = tmp_path / "frame.html"
    frame = FRAME.format(width, 1600, html.escape(page))
    file.write_text(f"<!DOCTYPE html><meta charset=utf-8><body style='margin:0'>{frame}")
    shot = tmp_path / "page.png"
    window = f"--window-size={max(width, 500)},1600"
    browse(tmp_path, window, f"--screenshot={shot}", file.as_uri())
    assert struct.unpack(">II", shot.read_bytes()[16:24])[0] == max(width, 500)
    seen = picture(shot)[:, :width]
    assert seen.shape[:2] == (1600, width)
    # text and plots on every tenth of the page, and the marks' blue
    assert all(part.std() > 0.02 for part in np.array_split(seen, 10))
    blue = np.abs(seen - np.array([0x1F, 0x5F, 0xA8]) / 255).max(-1) < 0.02
    assert blue.sum() > 200


def test_it_prints(report, tmp_path):
    target = tmp_path / "page.pdf"
    browse(tmp_path, f"--print-to-pdf={target}", (report / "index.html").as_uri())
    assert target.read_bytes()[:5] == b"%PDF-"
    assert len(re.findall(rb"/Type\s*/Page\b", target.read_bytes())) >= 2
