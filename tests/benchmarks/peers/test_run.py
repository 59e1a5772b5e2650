"""What the driver would run."""

import pathlib

import pytest

from benchmarks.peers import exchange, options, recipes, run
from tests.benchmarks.peers import standin


def driven(monkeypatch, capsys, *arguments):
    monkeypatch.setattr("sys.argv", ["run", "--dry", *arguments])
    run.main()
    return capsys.readouterr().out


def test_missing_cells_alone_are_run(monkeypatch, capsys, tmp_path):
    exchange.save_events(tmp_path / "ml-100k" / exchange.EVENTS, standin.events())
    standin.cell(tmp_path, "ml-100k", "rectools-hstu", 0, 0.5, standin.curve((1, 0.1)))
    shared = (
        f"--runs={tmp_path}",
        "--data",
        "ml-100k",
        "--seeds=0,1",
        "--rectools-python=A/python",
        "--recbole-python=B/python",
        "--seconds",
        "ml-100k=7",
    )
    text = driven(monkeypatch, capsys, *shared)
    assert "rectools-hstu seed 0" not in text
    assert "rectools-hstu seed 1" in text
    assert "A/python -m benchmarks.peers.rectools_models" in text
    assert "--seconds=7" in text
    assert "B/python -m benchmarks.peers.recbole_models" in text
    assert "benchmarks.peers.ours" in text
    assert "peers.export" not in text


def test_events_are_exported_first(monkeypatch, capsys, tmp_path):
    line = (f"--runs={tmp_path}", "--data", "ml-100k", "--only", "jaxrec-hstu")
    text = driven(monkeypatch, capsys, *line)
    assert text.index("peers.export") < text.index("peers.ours")


def test_a_peer_needs_its_environment(monkeypatch, tmp_path):
    monkeypatch.setattr("sys.argv", ["run", "--dry", f"--runs={tmp_path}", "--data", "ml-100k"])
    with pytest.raises(SystemExit, match="rectools-python"):
        run.main()


def test_settings_from_the_command_line():
    found = options.changes(["lr=0.01", "loss=softmax", "kwargs={'a': 1}"])
    assert found == {"lr": 0.01, "loss": "softmax", "kwargs": {"a": 1}}


def test_the_table_of_recbole_is_written_as_the_recipes_read_it(tmp_path):
    text = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n1\t2\t5\t10\n"
    (tmp_path / recipes.INTER).write_text(text)
    file = tmp_path / "out" / "interactions.csv"
    recipes.write_100k(tmp_path, file)
    assert file.read_text() == "user_id,item_id,rating,timestamp\n1,2,5,10\n"
    with pytest.raises(SystemExit, match="neither"):
        recipes.write_100k(pathlib.Path("nowhere"), file)


@pytest.mark.parametrize("data", recipes.DATA)
def test_recipes_load(data):
    for recipe in recipes.OURS[data].values():
        recipes.load(recipe)
