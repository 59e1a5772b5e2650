"""Wrong command lines end with one line that names the key or file and the remedy."""

import json
import re
import subprocess
import sys

from jaxrec.config import Config
from jaxrec.runtime import workdir
from tests.integration import tiny

KNOWN = "--config=configs/synthetic.py"


def refusals(program, cases):
    done = subprocess.run(
        [sys.executable, "tests/integration/refusals.py", program],
        input=json.dumps(cases),
        capture_output=True,
        text=True,
        cwd=tiny.ROOT,
        env=tiny.environment() | {"PYTHONPATH": str(tiny.ROOT)},
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def check(program, cases):
    for (argv, pattern), (status, output) in zip(
        cases, refusals(program, [argv for argv, _ in cases]), strict=True
    ):
        last = output.strip().splitlines()[-1]
        assert status == 2, (argv, output)
        assert "Traceback" not in output, (argv, output)
        assert last.startswith(f"jaxrec {program}: error: "), (argv, output)
        assert re.search(pattern, last), (argv, last)


def table(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    return ["--config=configs/table.py", f"--config.data.path={tmp_path / name}"]


def test_train(tmp_path):
    run = f"--workdir={tmp_path / 'run'}"
    other = tmp_path / "other"
    other.mkdir()
    (other / "metrics.jsonl").write_text("")
    corrupt = tmp_path / "bad.parquet"
    corrupt.write_bytes(b"PAR1 this is no parquet file PAR1")
    header = "user_id,item_id,timestamp\n"
    good = table(tmp_path, "good.csv", header + "".join(f"1,{i % 3},{i}\n" for i in range(100)))
    short = table(tmp_path, "short.csv", header + "".join(f"{i},{i % 3},{i}\n" for i in range(9)))
    firsts = table(tmp_path, "firsts.csv", header + "".join(f"{i},1,{i}\n" for i in range(30)))
    every = ["--config.data.min_user_events=1", "--config.data.min_item_events=1"]
    small = ["--config.train.steps=1"]
    check(
        "train",
        [
            ([], r"--config=FILE\.py is needed"),
            ([KNOWN], r"--workdir=FOLDER is needed"),
            (["--config=configs/quikstart.py", run], r"not a Python file; there are .*quickstart"),
            ([f"{KNOWN}:fast", run], r"config argument 'fast': allowed are compressed, full"),
            ([KNOWN, run, "--config.train.stepz=3"], r"train\.stepz: known .*mean train\.steps"),
            ([KNOWN, run, "--config.train.steps=many"], r"train\.steps=many: an integer is needed"),
            ([KNOWN, run, "--config.train.ema=much"], r"train\.ema=much: a number is needed"),
            ([KNOWN, run, "--config.data.core=2"], r"data\.core=2: True or False is needed"),
            ([KNOWN, run, "--config.train.steps=0"], r"train\.steps=0: allowed is 1 to any"),
            ([KNOWN, run, "--config.model.backbone=gru"], r"model\.backbone='gru': allowed are"),
            ([KNOWN, run, "--config.model.heads=3"], r"model\.width=64: must be a multiple"),
            ([KNOWN, run, "--config.model=3"], r"group|model"),
            ([KNOWN, run, "stray"], r"unexpected argument 'stray'"),
            # refused before the training, not behind it
            ([KNOWN, run, "--config.eval.mode=best"], r"'best' is no row of this run; allowed are"),
            ([KNOWN, run, "--config.mesh.data=3", "--config.train.batch_size=4"], r"mesh|device"),
            ([KNOWN, f"--workdir={other}", *tiny.TINY], r"has metrics\.jsonl but no config\.json"),
            (
                ["--config=configs/table.py", run, "--config.data.path=/nowhere.csv"],
                r"/nowhere\.csv",
            ),
            ([*table(tmp_path, "empty.csv", ""), run], r"empty\.csv: the file is empty"),
            ([*table(tmp_path, "rows.csv", header), run], r"rows\.csv: no rows"),
            (
                [*table(tmp_path, "names.csv", "user,item_id,timestamp\n1,2,3\n"), run],
                r"names\.csv: column 'user_id' is missing.*data\.user_column",
            ),
            (
                [*table(tmp_path, "minus.csv", header + "1,2,-5\n"), run],
                r"minus\.csv: column 'timestamp' is negative in 1 rows",
            ),
            ([*table(tmp_path, "null.csv", header + "1,2,3\n1,,4\n"), run], r"null\.csv.*item_id"),
            (
                [*table(tmp_path, "big.csv", header + f"1,{2**63},4\n"), run],
                rf"big\.csv.*item_id.*{2**63}",
            ),
            (
                [*table(tmp_path, "words.csv", header + "1,2,yesterday\n"), run],
                r"words\.csv.*timestamp",
            ),
            ([*table(tmp_path, "one.csv", header + "1,2,3\n"), run], r"one\.csv|event"),
            (
                ["--config=configs/table.py", f"--config.data.path={corrupt}", run],
                r"bad\.parquet",
            ),
            ([*good, run, "--config.data.min_item_events=1000"], r"min_item_events"),
            # no user has a target: known before the training
            ([*short, *every, run], r"data/table-\w+: no user has a target for validation\. Lower"),
            ([*good, *every, run, "--config.data.holdout=50"], r"no user has a target"),
            (
                [*firsts, *every, run, "--config.data.split=time", *small],
                r"no user has a target for validation.*another data\.split",
            ),
        ],
    )


def test_eval(tmp_path):
    config = [*tiny.arguments(tmp_path / "run")]
    empty, other = tmp_path / "empty", tmp_path / "other"
    empty.mkdir()
    workdir.claim(other, Config(), {})
    check(
        "evaluate",
        [
            (config, r"run: no such run; train it first"),
            (tiny.arguments(empty), r"empty has no config\.json: train there first"),
            (
                tiny.arguments(other),
                r"other holds a run of another configuration: .*layout\.tokens=4 there, 2 here",
            ),
            (
                [*tiny.arguments(empty), "--config.eval.mode=best"],
                r"eval\.mode='best': 'best' is no row of this run; allowed are all",
            ),
            (
                [*tiny.arguments(empty), "--config.eval.mode=full"],
                r"full needs eval\.full_workdir",
            ),
            (
                [*tiny.arguments(empty), f"--config.eval.full_workdir={tmp_path / 'none'}"],
                r"none|empty",
            ),
            ([*tiny.arguments(empty), "--config.eval.ks=()"], r"eval\.ks=\(\)"),
        ],
    )
