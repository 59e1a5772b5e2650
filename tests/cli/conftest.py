"""A trained run that the tests of the command line share, made by the command itself."""

import pytest

from jaxrec.cli.main import run
from tests.integration import tiny

MORE = (
    "--config.mesh.data=1",  # of the devices that tests have
    "--config.train.steps=2",
    "--config.train.eval_every=2",
)


def arguments(folder, *more):
    return tiny.arguments(folder, *MORE, *more)


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """Folder of a run of two steps."""
    folder = tmp_path_factory.mktemp("cli") / "run"
    assert run(["train", *arguments(folder)]) == 0
    return folder


@pytest.fixture(scope="session")
def store(trained):
    """Path of its store, with a state of every user."""
    path = trained.parent / "states"
    assert run(["states", "build", f"--workdir={trained}", f"--store={path}"]) == 0
    return path
