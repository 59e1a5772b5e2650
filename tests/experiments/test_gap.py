"""The experiment `gap`: its rows, what they are trained with, and the share of the gap closed."""

import numpy as np
import pytest

from jaxrec.errors import ConfigError, DataError
from jaxrec.experiments import __main__ as command
from jaxrec.experiments import baselines, gap, measures, oracle, registry, settings, statistics
from jaxrec.experiments.runs import Lab, known_rule
from tests.experiments import tiny

ROWS = ["recent", "compressed without its tokens", "compressed", "full"]


def lab(folder, **experiments):
    return Lab(tiny.config(seeds=(0,), **experiments), folder, [].append)


def rule_ranks(some, name):
    return some.rule_ranks(gap.base_of(some), name, known_rule(name))


def cells(some):
    return {cell.name: cell for cell in gap.gap(some).cells}


def test_first_part_is_without_counters(tmp_path):
    some = lab(tmp_path)
    assert some.base.model.repeat_half_lives  # the base run has some
    assert list(cells(some)) == ["popularity", "personal frequency", *ROWS]
    assert gap.base_of(some).model.repeat_half_lives == ()
    assert gap.counted_of(some) is None

    counted = lab(tmp_path, counters=(2.0, 9.0), baselines=("mean-pooled",))
    assert list(cells(counted))[-5:] == [
        "counters alone",
        "recent + counters",
        "compressed + counters",
        "full + counters",
        "mean-pooled + counters",
    ]
    made = gap.counted_of(counted)
    assert made is not None
    assert made.model.repeat_half_lives == (2.0, 9.0)


def test_baselines_are_trained_rows_with_their_cost(tmp_path):
    some = lab(tmp_path, baselines=("mean-pooled", "semi-local"))
    made = cells(some)
    assert list(made)[4:] == ["compressed", "mean-pooled", "semi-local", "full"]
    rows = {name: made[name].make() for name in ("compressed", "mean-pooled", "semi-local")}
    pooled, local = (baselines.BASELINES[n].made(gap.base_of(some)) for n in list(rows)[1:])
    assert (pooled.model.token_input, pooled.layout.tokens) == ("mean", 1)
    assert rows["mean-pooled"]["flops_of_full"] < rows["compressed"]["flops_of_full"]
    # a request of semi-local attention reads the raw history: as many pairs, all positions
    assert (local.layout.mode, local.layout.window, local.layout.prefix) == ("full", 6, 4)
    assert rows["compressed"]["flops_of_full"] < rows["semi-local"]["flops_of_full"] < 1
    for row in rows.values():
        assert "ndcg@10_closed" in row
    assert "`mean-pooled` is" in gap.gap(some).method


def test_generated_returns_have_a_part(tmp_path):
    config = tiny.config(seeds=(0,), returns=True)
    config.data.holdout = 6
    config.data.synthetic.returns = 0.9
    some = Lab(settings.validate(config), tmp_path, [].append)
    made = cells(some)
    names = ("popularity", *gap.modes_of(some.base), "oracle")
    assert list(made)[-5:] == [f"{name}, returns" for name in names]
    assert made["popularity, returns"].make()["targets"] == made["full, returns"].make()["targets"]
    row = made["compressed, returns"].make()
    assert 0 < row["targets"] < made["compressed"].make()["targets"]


def test_seen_items_filtered_leave_no_personal_rule(tmp_path):
    config = tiny.config(seeds=(0,))
    config.eval.filter_seen = True
    some = Lab(config, tmp_path, [].append)
    experiment = gap.gap(some)
    assert [cell.name for cell in experiment.cells] == ["popularity", *ROWS]
    assert "seen items filtered" in registry.protocol(some, experiment)["ranking"]
    config.experiments.counters = (2.0,)
    with pytest.raises(ConfigError, match=r"experiments\.counters=\(2\.0,\): .*filter_seen"):
        settings.validate(config)


def test_ranks_with_and_without_seen_items_are_kept_apart(tmp_path):
    plain = lab(tmp_path)
    config = tiny.config(seeds=(0,))
    config.eval.filter_seen = True
    filtered = Lab(config, tmp_path, [].append)  # its validations choose among the same steps
    every, fewer = (
        plain.ranks(gap.base_of(plain), "compressed"),
        filtered.ranks(gap.base_of(filtered), "compressed"),
    )
    np.testing.assert_array_equal(every.item, fewer.item)
    assert (fewer.rank <= every.rank).all()
    assert (fewer.rank < every.rank).any()
    # a rule ranks the same targets, and the filter leaves it popularity
    rules = [rule_ranks(one, "frequency-all") for one in (plain, filtered)]
    np.testing.assert_array_equal(rules[0].item, every.item)
    popularity = rule_ranks(filtered, "popularity")
    np.testing.assert_array_equal(rules[1].rank, popularity.rank)
    assert (rules[0].rank != popularity.rank).any()


def test_only_makes_the_runs_of_its_rows(tmp_path, capsys):
    recipe = tmp_path / "recipe.py"
    recipe.write_text(
        "from tests.experiments import tiny\n"
        "def get_config():\n    return tiny.config(seeds=(0,))\n"
    )
    arguments = ["gap", f"--config={recipe}", f"--runs={tmp_path / 'runs'}"]
    assert command.main([*arguments, "--only=compressed"]) == 0
    said = capsys.readouterr()
    assert said.err.count("\ntraining ") == 1  # neither recent nor full, which it is compared with
    assert not said.out
    with pytest.raises(ConfigError, match="--only='fill': rows are 'popularity'"):
        command.main([*arguments, "--only=full,fill"])
    with pytest.raises(ConfigError, match="one experiment"):
        command.main(["all", *arguments[1:], "--only=full"])


def test_gap_closed_is_paired():
    rng = np.random.default_rng(0)
    recent, full = rng.random((2, 40)), rng.random((2, 40)) + 0.5
    half = statistics.gap_closed((recent + full) / 2, recent, full, 200)
    assert half.share == pytest.approx((0.5, 0.5, 0.5))
    assert half.without_gap == 0
    assert half.gap == pytest.approx(statistics.interval(full - recent, 200))
    other = statistics.gap_closed(np.roll((recent + full) / 2, 1, axis=1), recent, full, 200)
    assert other.share.mean == pytest.approx(0.5)
    assert other.share.high - other.share.low > 0.05


def test_no_gap_has_no_share():
    rng = np.random.default_rng(0)
    table = rng.random((2, 40))
    equal = statistics.gap_closed(table, table, table, 100)
    assert np.isnan(equal.share).all()
    assert equal.gap == (0, 0, 0)
    assert equal.without_gap == 1
    # half of the resamples have no gap: counted, and the share is of the others
    noisy = statistics.gap_closed(table, table, table + rng.normal(0.0, 1.0, (2, 40)), 400)
    assert 0 < noisy.without_gap < 1
    with pytest.raises(ValueError, match="other seeds or users"):
        statistics.gap_closed(table, table, table[:1], 10)


def test_planted_returns_have_a_part_of_their_own(tmp_path):
    config = tiny.planted(tmp_path)
    some = Lab(settings.validate(config), tmp_path, [].append)
    made = {name: cell.make() for name, cell in cells(some).items() if ", " in name}
    suffixes = ("returns", "after 12", "after 18")  # the gap, and a segment later
    assert list(made) == [
        f"{name}, {suffix}"
        for suffix in suffixes
        for name in ("popularity", "recent", "compressed", "full", "oracle")
    ]
    assert list(dict.fromkeys(row["part"] for row in made.values())) == [
        "planted returns",
        "planted returns after 12 to 17 events",
        "planted returns after 18 events and more",
    ]
    parts = [made[f"full, {suffix}"]["targets"] for suffix in suffixes]
    assert parts[0] == parts[1] + parts[2]
    assert all(parts)
    # the returns among the targets: fewer, and the last event of a pair
    every = some.ranks(gap.base_of(some), "compressed")
    assert 0 < made["compressed, returns"]["targets"] < len(every.rank)
    session = some.session(gap.base_of(some))
    returns = sum(
        session.returning(user)[position]
        for user, position in zip(every.user, every.position, strict=True)
    )
    assert made["full, returns"]["targets"] == returns
    # the oracle is asked for the same targets, and ranks them where its lists have them
    best = made["oracle, returns"]
    assert best["targets"] == returns
    assert best["ndcg@10"] > max(made[f"{name}, returns"]["ndcg@10"] for name in ("recent", "full"))
    ranked = some.rule_ranks(gap.base_of(some), oracle.NAME, oracle.rule)
    rule = oracle.rule(session)
    for user, position, item, rank in zip(*measures.returns(some, [ranked])[0][:4], strict=True):
        listed = rule.personal_items(session.history(int(user))[:position])
        assert rank == listed.tolist().index(item)

    config.data.planted.returns = 0.0
    none = Lab(settings.validate(config), tmp_path, [].append)
    with pytest.raises(DataError, match=r"none of .* targets is a planted return"):
        cells(none)["compressed, returns"].make()
