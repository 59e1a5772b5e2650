"""One tiny trained run for all tests of the Python front."""

import pytest

import jaxrec
from tests.api import tiny


@pytest.fixture(scope="package")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("api") / "run"


@pytest.fixture(scope="package")
def fitted(folder):
    """A model that a pandas frame was fitted to."""
    frame = tiny.events().to_pandas()
    return jaxrec.fit(frame, workdir=folder, **tiny.COLUMNS, **tiny.SETTINGS)
