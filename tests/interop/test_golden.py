"""The command that checks recorded outputs: what it prints, and how it fails."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from jaxrec.interop import golden

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
CAUSAL = GOLDEN / "hstu_causal.npz"


@pytest.fixture
def arrays():
    return golden.read(str(CAUSAL))


@pytest.fixture
def save(tmp_path):
    def write(arrays):
        path = tmp_path / "changed.npz"
        np.savez(path, **arrays)
        return str(path)

    return write


def failure(capsys, path):
    """(exit status, message) of a run that cannot compare."""
    with pytest.raises(SystemExit) as stop:
        golden.main([str(path)])
    captured = capsys.readouterr()
    assert captured.out == ""
    return stop.value.code, captured.err


def test_command():
    """One line per quantity and exit status 0, as the module is run."""
    run = subprocess.run(
        [sys.executable, "-W", "error", "-m", "jaxrec.interop.golden", str(CAUSAL)],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=GOLDEN.parents[1],
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert [line.split()[0] for line in run.stdout.splitlines()] == [
        "hidden",
        "scores",
        "loss",
        "grad_item_embedding",
    ]


@pytest.mark.parametrize("key", ["hidden", "grad_item_embedding"])
def test_a_difference_is_exit_status_1(key, arrays, save, capsys):
    changed = np.array(arrays[key])
    # the last position of the last user is valid
    changed.flat[-1] += 1.4e-5 * np.abs(changed).max()
    assert golden.main([save({**arrays, key: changed})]) == 1
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert lines[key].endswith("above 1e-05")
    assert sum(line.endswith("ok") for line in lines.values()) == 3


@pytest.mark.parametrize("key", ["hidden", "grad_item_embedding"])
def test_rounding_of_large_numbers_is_no_difference(key, arrays, save):
    changed = np.array(arrays[key])
    changed.flat[-1] += 0.7e-5 * np.abs(changed).max()
    assert golden.main([save({**arrays, key: changed})]) == 0


def test_nan_is_a_difference(arrays, save, capsys):
    scores = arrays["scores"].copy()
    scores[0, 0] = np.nan
    assert golden.main([save({**arrays, "scores": scores})]) == 1
    assert "nan" in capsys.readouterr().out


def test_invalid_positions_are_not_compared(arrays):
    hidden = np.where(arrays["mask"][..., None], arrays["hidden"], np.nan)
    assert golden.compare({**arrays, "hidden": hidden})["hidden"] <= 1e-5


@pytest.mark.parametrize(
    "keys",
    [["config"], ["hidden", "seq"], ["neg"], ["loss", "grad_item_embedding"]],
    ids=" ".join,
)
def test_missing_keys_are_named(keys, arrays, save, capsys):
    for key in keys:
        del arrays[key]
    code, message = failure(capsys, save(arrays))
    assert code == 2
    assert f"missing keys {', '.join(keys)}; found" in message


def test_a_file_with_tokens_needs_no_loss(save):
    arrays = golden.read(str(GOLDEN / "hstu_compressed.npz"))
    for key in ("neg", "loss", "grad_item_embedding"):
        del arrays[key]
    assert golden.main([save(arrays)]) == 0


def test_missing_weights_are_named(arrays, save, capsys):
    assert (
        "missing _hstu._attention_layers.1._uvqk"
        in failure(capsys, save({k: v for k, v in arrays.items() if "layers.1._uvqk" not in k}))[1]
    )
    assert (
        "missing keys param/..."
        in failure(capsys, save({k: v for k, v in arrays.items() if "param/" not in k}))[1]
    )


def test_files_that_are_none(tmp_path, capsys):
    assert failure(capsys, tmp_path / "none.npz") == (
        2,
        f"error: {tmp_path / 'none.npz'}: no such file\n",
    )
    for content in (b"", b"text", CAUSAL.read_bytes()[:9000]):
        path = tmp_path / "broken.npz"
        path.write_bytes(content)
        code, message = failure(capsys, path)
        assert code == 2
        assert "broken.npz: not a readable .npz file" in message
    np.save(tmp_path / "one.npy", np.zeros(3))
    assert "not a readable .npz file" in failure(capsys, tmp_path / "one.npy")[1]
    assert failure(capsys, tmp_path)[0] == 2


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        ("config", lambda a: np.asarray("{"), "config is no JSON object"),
        ("config", lambda a: np.asarray("[]"), "config"),
        ("items", lambda a: a[:, :-1], "items has shape (3, 20)"),
        ("items", lambda a: a + 40, "items has int64"),
        ("items", lambda a: a * 1.0, "items has float64"),
        ("seq", lambda a: a[:, :5], "seq has shape (3, 5)"),
        ("mask", lambda a: a[:2], "items has shape (3, 21)"),
        ("mask", lambda a: a[:, ::-1], "padding behind an item"),
        ("hidden", lambda a: a[:, 1:], "hidden has shape (3, 19, 16)"),
        ("scores", lambda a: a[:, 1:], "scores has shape (3, 59)"),
        ("neg", lambda a: a - 50, "neg has int64"),
    ],
)
def test_values_that_do_not_fit(key, change, message, arrays, save, capsys):
    arrays[key] = change(arrays[key])
    code, error = failure(capsys, save(arrays))
    assert code == 2
    assert message in error


def test_golden_configs_are_json():
    for path in GOLDEN.glob("*.npz"):
        assert json.loads(str(golden.read(str(path))["config"]))["n_heads"] == 2
