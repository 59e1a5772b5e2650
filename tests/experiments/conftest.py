"""One report for all tests that only look at it."""

import pytest

from jaxrec.experiments import page
from tests.experiments import made_up


@pytest.fixture(scope="session")
def report(tmp_path_factory):
    """The folder of a page made from four tables and a benchmark."""
    folder = tmp_path_factory.mktemp("report")
    for make in (made_up.gap, made_up.length, made_up.placement, made_up.experts):
        make(folder)
    made_up.bench(folder / "bench")
    page.write(folder, folder / "bench")
    return folder
