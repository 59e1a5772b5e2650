"""Examples in docstrings run, and every public name of the package is there."""

import doctest
import importlib
import pathlib

import pytest

import jaxrec

ROOT = pathlib.Path(jaxrec.__file__).parent
MODULES = sorted(
    ".".join(("jaxrec", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")
    for path in ROOT.rglob("*.py")
    if ">>> " in path.read_text()
)


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert result.attempted
    assert not result.failed


@pytest.mark.parametrize("name", jaxrec.__all__)
def test_public_names(name):
    assert getattr(jaxrec, name) is not None
    assert name in dir(jaxrec)


def test_unknown_names_are_refused():
    with pytest.raises(AttributeError, match="no attribute 'recomender'"):
        _ = jaxrec.recomender
