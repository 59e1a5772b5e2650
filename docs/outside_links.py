"""A hook of mkdocs: links to files of the repository that are no pages become their names."""

import re
from typing import Any

_OUTSIDE = re.compile(r"\[([^\]]+)\]\((?:\.\./)+([^)#\s]+)(?:#[^)]*)?\)")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """`[text](../results/x.md)` becomes text (`results/x.md`)."""
    return _OUTSIDE.sub(r"\1 (`\2`)", markdown)
