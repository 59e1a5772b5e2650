"""A configuration written as a recipe, a Python file that `--config` takes."""

import pathlib
import textwrap
from collections.abc import Mapping, Sequence

from jaxrec.config import Config
from jaxrec.errors import ConfigError
from jaxrec.runtime import workdir


def write(
    path: pathlib.Path,
    config: Config,
    *,
    title: str,
    about: Sequence[str],
    reasons: Mapping[str, str],
) -> None:
    """Writes `text(...)` with the command that trains it to FILE.py; the folder is made.

    A file of the same content is left alone. Raises ConfigError for another suffix and for a file
    of other content, which is never replaced.
    """
    if path.suffix != ".py":
        raise ConfigError(f"{path}: a recipe is a Python file, its name must end in .py")
    content = text(path, config, title=title, about=about, reasons=reasons)
    if path.exists():
        if path.is_file() and path.read_text(encoding="utf-8") == content:
            return
        raise ConfigError(f"{path}: exists and is another recipe; remove it or name another file")
    path.parent.mkdir(parents=True, exist_ok=True)
    workdir.write_text(path, content)


def text(
    path: pathlib.Path,
    config: Config,
    *,
    title: str,
    about: Sequence[str],
    reasons: Mapping[str, str],
) -> str:
    """Python source whose `get_config()` returns `config`.

    title, about: first line and paragraphs of the docstring. reasons: dotted key -> comment above
    its value. Keys without a reason are written where they differ from their default.
    """
    command = f"jaxrec train --config={path} --workdir=runs/{path.stem}"
    paragraphs = [textwrap.fill(_plain(line), 96, subsequent_indent="    ") for line in about]
    docstring = "\n".join(
        [_plain(title), "", *paragraphs, "Command:", "", f"    {_plain(command)}"]
    )
    lines = [f'"""{docstring}\n"""', "", "from jaxrec.config import Config", "", ""]
    lines += ["def get_config() -> Config:", "    config = Config()"]
    defaults = workdir.flatten(Config())
    for key, value in workdir.flatten(config).items():
        if key not in reasons and value == defaults[key]:
            continue
        if key in reasons:
            lines += textwrap.wrap(
                _plain(reasons[key]), 94, initial_indent="    # ", subsequent_indent="    # "
            )
        lines.append(f"    config.{key} = {value!r}")
    return "\n".join([*lines, "    return config", ""])


def _plain(line: str) -> str:
    """Text that may stand in a docstring or comment: one line, no escapes, no end of string."""
    return " ".join(line.split()).replace("\\", "/").replace('"""', "'''")
