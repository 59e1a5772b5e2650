"""The recipes after the paper's HLLM, as `train.py` plans them, with little towers."""

import dataclasses

import pytest

from configs import hllm_llama32_1b_ebnerd, hllm_llama32_1b_merrec, llama_id_ml_latest_small
from jaxrec import config as config_lib
from jaxrec.cli import training
from jaxrec.runtime import mesh as mesh_lib
from jaxrec.session import Session
from tests.data import upstream
from tests.interop.folders import tower_folder

SMALL = {"kv_heads": 1, "head_width": 4, "ffn_width": 12}
RECIPES = {
    "ebnerd": (hllm_llama32_1b_ebnerd, upstream.ebnerd, (4 * 104 + 100, 100)),
    "merrec": (hllm_llama32_1b_merrec, upstream.merrec, (4 * 260 + 256, 256)),
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_planned_with_both_towers_trained(name, tmp_path, capsys):
    recipe, write, (length, recent) = RECIPES[name]
    config = recipe.get_config()
    train_config, texts = config.train, config.model.texts
    # what the paper says
    assert (train_config.learning_rate, train_config.schedule) == (1e-4, "cosine")
    assert train_config.warmup == pytest.approx(0.15 * train_config.steps)
    assert (texts.max_tokens, texts.train, texts.pool) == (256, "full", "token")
    assert train_config.batch_size == 2 * config.mesh.fsdp
    assert config.layout.recent == recent
    # on little data, with little towers
    for key, value in write(tmp_path / "data").items():
        setattr(config.data, key, value)
    config.data.min_user_events, config.data.min_item_events = 3, 1
    config.data.workers, config.train.dry_run = 0, True
    folder = tower_folder(tmp_path / "tower", width=8)
    texts.model = texts.user_model = folder
    texts.max_tokens = 12
    model = config.model
    model.width = model.item_width = 8
    model.layers, model.heads = 2, 1
    model.llama = dataclasses.replace(model.llama, **SMALL)
    config.loss.negatives, config.mesh.fsdp = 8, 1
    mesh = mesh_lib.make_mesh(config_lib.validate(config).mesh)
    session = Session(config, tmp_path / "run", mesh)
    assert session.layout.length == length
    assert set(texts.fields) <= set(session.prepared.texts)
    training.print_dry_run(config, session, mesh)
    out = capsys.readouterr().out
    assert "rows of 256 positions" in out
    assert "memory per device" in out
    assert f"mesh: data {mesh.size}" in out


def test_the_id_recipe_has_no_texts():
    config = config_lib.validate(llama_id_ml_latest_small.get_config("full"))
    assert (config.layout.mode, config.model.backbone, config.model.texts.model) == (
        "full",
        "llama",
        "",
    )
