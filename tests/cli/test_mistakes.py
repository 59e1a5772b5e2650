"""Beginner's mistakes: one line that names the thing and the remedy, and a status that says so."""

import re
import shutil
import sys

import pytest

from jaxrec.cli.main import run
from jaxrec.config import Config
from jaxrec.runtime import workdir
from tests.cli.conftest import arguments

KNOWN = "--config=configs/synthetic.py"
HEADER = "user_id,item_id,timestamp\n"
ROWS = "".join(f"{i % 9},{i % 7},{1_700_000_000 + i}\n" for i in range(90))
LIBRARY = re.compile(
    r"argparse|absl|polars|Traceback|KeyError|NoneType|orbax|usage:", re.IGNORECASE
)


def refused(argv, pattern, capsys, command=None):
    """One line on standard error, status 2."""
    assert run([str(argument) for argument in argv]) == 2
    said = capsys.readouterr().err.splitlines()
    lines = [line for line in said if not line.startswith("data: ")]  # progress
    assert len(lines) == 1, lines
    prefix = "jaxrec: error: " if command == "" else f"jaxrec {command or argv[0]}: error: "
    assert lines[0].startswith(prefix)
    assert re.search(pattern, lines[0]), lines[0]
    assert not LIBRARY.search(lines[0]), lines[0]


@pytest.mark.parametrize(
    ("argv", "pattern"),
    [
        (["trian"], r"unknown command 'trian': did you mean train\?"),
        (["--verbose"], r"unknown flag '--verbose': there are train, "),
        (["quux"], r"unknown command 'quux': there are train, evaluate, "),
    ],
)
def test_commands_that_are_not_there(argv, pattern, capsys):
    refused(argv, pattern, capsys, command="")


RUN = "--workdir=never-made"


@pytest.mark.parametrize(
    ("argv", "pattern"),
    [
        (["train", KNOWN, RUN, "--steps=5"], r"--steps: did you mean --config\.train\.steps\?"),
        (["train", KNOWN, RUN, "--learning_rat=5"], r"mean --config\.train\.learning_rate\?"),
        (["train", KNOWN, "--workdri=x"], r"unknown flag --workdri: did you mean --workdir\?"),
        (["train", KNOWN, RUN, "--config.train.stepz=3"], r"train\.stepz: .*mean train\.steps\?"),
        (["train", KNOWN, RUN, "--config.train.steps=many"], r"steps=many: an integer is needed"),
        (["train", KNOWN, RUN, "--config.train.steps=1e3"], r"steps=1e3: an integer is needed"),
        (["train", KNOWN, RUN, "--config.model.backbone=gru"], r"backbone='gru': allowed are hstu"),
        (["train", "--config=configs/quickstart", RUN], r"not a Python file; there are .*quick"),
        (["train", RUN], r"--config=FILE\.py is needed, for example"),
        (["train", KNOWN], r"--workdir=FOLDER is needed"),
        (["train", KNOWN, "--workdir=setup.cfg"], r"--workdir=setup\.cfg: a file; name a folder"),
        (["train", KNOWN, RUN, "--config.train.loggers=comet"], r"loggers='comet': .* auto, tens"),
        (["train", KNOWN, RUN, "5"], r"unexpected argument '5': see --help"),
        (["train", KNOWN, RUN, "--coordinator=host"], r"'host': allowed are HOST:PORT, auto, none"),
        (["train", KNOWN, RUN, "--coordinator=h:99999", "--processes=2", "--process=0"], "65535"),
        (["evaluate", "--workdir=nowhere"], r"nowhere: no such run; train it first"),
        (["evaluate"], r"--workdir=FOLDER is needed"),
        (["evaluate", "--config.eval.mode=all"], r"--workdir=FOLDER is needed"),
        (["describe", KNOWN, RUN, "--output=x.txt"], r"--output=x\.txt: the name must end in \.js"),
        (["recommend", "--workdir=x", "--store=y", "--k=ten"], r"--k='?ten'?: an integer is need"),
        (["recommend", "--workdir=x", "--store=y", "--k=0"], r"--k=0: a positive number of items"),
        (["recommend", "--workdri=x"], r"unknown flag --workdri: did you mean --workdir\?"),
        (["recommend", "--workdir=x"], r"--store/--states is needed: path or URL|--store"),
        (["recommend", "--workdir=x", "--store=y", "--output=a.xls"], r"known endings are \.json"),
        (["recommend", "--workdir=x", "--store=y", "--titles=items"], r"FILE:COLUMN is needed"),
        (
            ["recommend", "--workdir=x", "--store=y", "--users=u.txt", "--all-users"],
            r"--all-users and --users: give one of them",
        ),
        (["recommend", "--workdir=nowhere", "--store=y"], r"nowhere has no config\.json: train"),
        (["states", "build", "--workdir=x", "--store="], r"--store= is empty: name a place"),
        (["states", "rebuild", "--workdir=x", "--from=", "--store=y"], r"--from= is empty: name"),
        (["states", "stat", "--store="], r"--store= is empty: name a place"),
        (["recommend", "--workdir=x", "--store="], r"--store= is empty: name a place"),
        (["states", "bild"], r"unknown command 'bild': did you mean build\?"),
        (["states", "recommend"], r"a command of its own: jaxrec recommend"),
        (["states", "append", "--workdir=x", "--store=y"], r"one of --events --later is needed"),
        (
            ["states", "stat", "--store=nowhere"],
            r"nowhere/store\.json: missing, there is no store here",
        ),
        (["compare", "runs/a"], r"two runs are needed, given 1"),
        (["compare", "nowhere", "nobody"], r"nowhere: no such run"),
        (["report"], r"files, or --page=FOLDER, are needed"),
        (["report", "nowhere.json"], r"nowhere\.json: no such file"),
        (["report", "setup.cfg"], r"setup\.cfg: damaged: .*not the result of an evaluation"),
    ],
)
def test_mistakes_in_flags(argv, pattern, capsys):
    refused(argv, pattern, capsys)


def test_mistakes_in_files_of_events(tmp_path, capsys):
    def file(name, text):
        (tmp_path / name).write_text(text)
        return tmp_path / name

    (tmp_path / "folder").mkdir()
    (tmp_path / "book.xlsx").write_bytes(b"PK\x03\x04 a spreadsheet")
    events = file("events.csv", HEADER + ROWS)
    items = ["--config.data.items_path=/nowhere.csv", "--config.data.text_columns=('title',)"]
    cases = [
        ("/nowhere.csv", [], r"/nowhere\.csv.*no such file"),
        (tmp_path / "folder", [], r"folder' is a folder\. Name a file or a glob"),
        (tmp_path / "book.xlsx", [], r"book\.xlsx.*\.csv"),
        (file("empty.csv", ""), [], r"empty\.csv: the file is empty"),
        (file("header.csv", HEADER), [], r"header\.csv: no rows"),
        (
            file("semicolons.csv", (HEADER + ROWS).replace(",", ";")),
            [],
            r"semicolons\.csv: column 'user_id' is missing.*separated by ';': \.csv needs commas",
        ),
        (events, ["--config.data.user_column=usr"], r"column 'usr' is missing.*user_column"),
        (file("words.csv", HEADER + "1,2,yesterday\n"), [], r"words\.csv.*timestamp"),
        (events, items, r"/nowhere\.csv.*no such file"),
    ]
    for path, more, pattern in cases:
        argv = ["prepare", f"--config=configs/table.py:{path}", f"--workdir={tmp_path / 'run'}"]
        refused([*argv, *more], pattern, capsys)


def test_mistakes_about_runs(trained, store, tmp_path, capsys, monkeypatch):
    empty, other, unranked = tmp_path / "empty", tmp_path / "other", tmp_path / "unranked"
    empty.mkdir()
    workdir.claim(other, Config(), {})
    shutil.copytree(trained, unranked, ignore=shutil.ignore_patterns("ranks.npz", "checkpoints"))
    of_store = [f"--workdir={trained}", f"--store={store}"]
    (tmp_path / "words.txt").write_text("anna\n")
    (tmp_path / "none.txt").write_text("\n")
    (tmp_path / "nulls.csv").write_text(f"{HEADER}1,2,1700000000\n1,,1700000001\n")
    monkeypatch.setitem(sys.modules, "flatbuffers", None)  # not installed
    cases = [
        (["evaluate", f"--workdir={empty}"], r"empty has no config\.json: train there first"),
        (
            ["evaluate", *arguments(other)],
            r"other holds a run of another configuration: .*layout\.tokens=4 there, 2 here",
        ),
        (
            ["train", *arguments(trained, "--config.model.width=16")],
            r"belongs to another configuration .*model\.width=8 there, 16 here",
        ),
        (["evaluate", f"--workdir={trained}", "--config.eval.mode=best"], r"'best' is no row of"),
        (
            ["evaluate", f"--workdir={trained}", "--config.model.width=16"],
            r"model\.width=8 there, 16 here",
        ),
        (["recommend", *of_store, f"--users={tmp_path / 'no.txt'}"], r"no\.txt: no such file"),
        (["recommend", *of_store, f"--users={tmp_path / 'words.txt'}"], r"'anna' is no integer"),
        (["recommend", *of_store, f"--users={tmp_path / 'none.txt'}"], r"no ids; --all-users"),
        (["recommend", f"--workdir={trained}", "--store=nowhere"], r"there is no store here"),
        (["states", "append", *of_store, "--events=no.csv"], r"--events='no\.csv': no such file"),
        (
            ["states", "append", *of_store, f"--events={tmp_path / 'nulls.csv'}"],
            r"nulls\.csv: column 'item_id' is null in 1 rows, first in row 1\. Remove these rows",
        ),
        (["states", "verify", *of_store, "--sample=0"], r"sample=0: at least 1 user"),
        (
            ["states", "export", f"--workdir={trained}", f"--output={tmp_path / 'x'}"],
            r"flatbuffers is not installed: pip install 'jaxrec\[export\]'",
        ),
        (["compare", trained, unranked], r"has no ranks\.npz.*jaxrec evaluate --workdir="),
        (["compare", trained, trained, "--row=best"], r"no row 'best' was evaluated; there are c"),
        (["report", empty], r"has no results\.json: jaxrec evaluate --workdir="),
    ]
    for argv, pattern in cases:
        refused(argv, pattern, capsys)


def test_unknown_users_are_said(trained, store, tmp_path, capsys):
    (tmp_path / "users.txt").write_text("987654321\n")
    argv = [f"--workdir={trained}", f"--store={store}", f"--users={tmp_path / 'users.txt'}"]
    capsys.readouterr()
    assert run(["recommend", *argv, "--k=3"]) == 0
    captured = capsys.readouterr()
    assert captured.err == "--users: 1 of 1 users are unknown: given the most popular items\n"
    assert captured.out.startswith('{"user": 987654321, "items": [')
