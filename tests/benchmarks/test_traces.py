"""A run that differs, is shorter or is missing is not the same run."""

import json

import pytest

from benchmarks import traces


def write(folder, losses):
    folder.mkdir(parents=True)
    rows = [{"step": n, "train/loss": loss, "steps_per_s": n} for n, loss in enumerate(losses, 1)]
    rows.append({"step": 2, "validation/ndcg@10": 0.5})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize(
    ("after", "identical", "same"),
    [
        ([4.0, 2.0], True, True),
        ([4.0, 2.000001], False, True),
        ([4.0, 2.00001], False, False),
        ([4.0], True, False),
        ([4.0, float("nan")], False, False),
    ],
)
def test_runs_of_one_name(tmp_path, capsys, after, identical, same):
    write(tmp_path / "before" / "a", [4.0, 2.0])
    write(tmp_path / "after" / "a", after)
    status = traces.main([str(tmp_path / "before"), str(tmp_path / "after")])
    row = json.loads(capsys.readouterr().out)
    assert (row["run"], row["identical"], row["same"], status) == ("a", identical, same, not same)


def test_a_missing_run_is_a_difference(tmp_path):
    write(tmp_path / "before" / "a", [4.0, 2.0])
    assert traces.main([str(tmp_path / "before"), str(tmp_path / "after")]) == 1


def test_no_runs_is_an_error(tmp_path, capsys):
    with pytest.raises(SystemExit):
        traces.main([str(tmp_path), str(tmp_path)])
    assert "no working directory" in capsys.readouterr().err
