"""The experiment `bytes`: rows of states by tokens and encoding, on the targets of `gap`."""

import numpy as np
import pytest

from jaxrec.errors import ConfigError
from jaxrec.evaluation.ranks import Ranks
from jaxrec.experiments import gap, measures, settings, state_size
from jaxrec.experiments.runs import Lab, with_values
from jaxrec.experiments.stored import StoredRanks
from jaxrec.state_store.encodings import ENCODINGS
from tests.experiments import tiny


def config():
    made = tiny.config(seeds=(0,), returns=True)
    made.data.holdout = made.experiments.last = 4
    made.data.synthetic.returns = 0.9
    return made


def test_the_newest_targets_of_every_user():
    user, position = np.array([1, 1, 1, 4, 4, 7]), np.array([5, 6, 7, 2, 3, 9])
    found = state_size.newest(Ranks(user, position, user + 10, position + 20, None), 2)
    assert found.user.tolist() == [1, 1, 4, 4, 7]
    assert found.position.tolist() == [6, 7, 2, 3, 9]
    assert found.item.tolist() == [11, 11, 14, 14, 17]
    assert found.rank.tolist() == [26, 27, 22, 23, 29]


def test_rows(tmp_path):
    lab = Lab(settings.validate(config()), tmp_path, [].append)
    rows = {cell.name: cell.make() for cell in state_size.sizes(lab).cells}
    names = [f"{n} token{'s' if n > 1 else ''}, {form}" for n in (1, 2) for form in ENCODINGS]
    assert list(rows) == ["recent", *names, "full"]

    # the planted returns among the newest targets, by the model of the row
    some = with_values(gap.base_of(lab), layout__tokens=2)
    masked, stored = measures.by_seed(lab, some), StoredRanks(lab).by_seed(some, "float32")
    session = lab.session(some)
    (kept,) = stored
    where = zip(kept.user, kept.position, strict=True)
    returns = np.array([session.returning(int(user))[position] for user, position in where])
    row = rows["2 tokens, float32"]
    assert 0 < row["targets"] == returns.sum() < len(masked[0].rank)
    assert rows["full"]["targets"] == rows["recent"]["targets"] == row["targets"]
    means = [
        np.mean(1 / (kept.rank[returns & (kept.user == user)] + 1))
        for user in np.unique(kept.user[returns])
    ]
    assert row["mrr"] == pytest.approx(np.mean(means))

    # what is closed is a share of full - recent
    for column in ("recall@10", "ndcg@10", "mrr"):
        difference = rows["full"][column] - rows["recent"][column]
        assert row[f"{column}_gap"] == pytest.approx(difference)
        if difference > 0:
            share = (row[column] - rows["recent"][column]) / difference
            assert row[f"{column}_closed"] == pytest.approx(share)

    # K/V of the second layer, two segments, width 8
    for tokens in (1, 2):
        assert rows[names[3 * tokens - 3]]["vector_bytes"] == 2 * tokens * 2 * 8 * 4
        sizes = [rows[name]["row_bytes"] for name in names[3 * tokens - 3 : 3 * tokens]]
        assert sizes == sorted(set(sizes), reverse=True)
    assert rows["1 token, int8"]["flops_of_full"] < rows["2 tokens, int8"]["flops_of_full"] < 1


def test_data_without_returns_count_every_target(tmp_path):
    made = config()
    made.experiments.returns = False
    study = state_size._Study(Lab(settings.validate(made), tmp_path, [].append))
    assert len(study.raw("recent")[0].rank) == 4 * 10


def test_seen_items_cannot_be_left_out(tmp_path):
    made = config()
    made.eval.filter_seen = True
    with pytest.raises(ConfigError, match=r"bytes: .* set eval\.filter_seen=False"):
        state_size.sizes(Lab(made, tmp_path, [].append))


def test_the_recipe_of_generated_returns_has_the_data_and_models_of_the_probe():
    from configs import experiments_probe, experiments_returns
    from jaxrec.experiments import probe
    from jaxrec.experiments.runs import name_of

    for backbone in experiments_probe.ARGUMENTS:
        made = settings.validate(experiments_returns.get_config(backbone))
        run = probe.run_of(experiments_probe.get_config(backbone))
        assert made.train.eval_every * 8 == run.train.eval_every  # alone: plateaus are seen
        rarely = with_values(made, train__eval_every=run.train.steps)
        assert name_of(with_values(rarely, train__checkpoint_every=run.train.steps)) == name_of(run)
        assert made.experiments.last == made.data.holdout
        many = settings.validate(experiments_returns.get_config(f"{backbone}_many"))
        assert many.data.synthetic.favourites == 8
        assert many.layout.recent <= many.data.synthetic.gap
        assert many.model.backbone == backbone
