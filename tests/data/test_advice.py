"""Advice: what facts lead to, that it is always a valid configuration, and the recipe it writes."""

import json

import hypothesis
import hypothesis.strategies as st
import numpy as np
import polars as pl
import pytest

from configs import table
from jaxrec.config import Config, asks_for_advice, load_recipe, to_json, validate
from jaxrec.data import advice, advice_facts, advised, description, prepare
from jaxrec.data.rhythm import Rhythm
from jaxrec.errors import ConfigError
from jaxrec.runtime import workdir

QUANTILES = ("0%", "10%", "25%", "50%", "75%", "90%", "95%", "99%", "100%")
DAY = 86_400


def statistics(**changes):
    """As `describe` computes them: a shop of repeat purchases, 380 events in the median."""
    lengths = (5, 47, 138, 380, 733, 1202, 1557, 2435, 3761)
    found = {
        "users": 2400,
        "items": 13_000,
        "train_events": 1_100_000,
        "mean_events": 515.0,
        "events_quantiles": dict(zip(QUANTILES, lengths, strict=True)),
        "tie_share": 0.1,
        "repeat_share": 0.45,
        "days": 365.0,
        "time_step": 1,
        "common_gap_share": 0.1,
        "gap_seconds": {"25%": 10, "50%": 60, "75%": 600, "90%": 3 * DAY},
        "repeat_gap_events": {"25%": 30, "50%": 73, "75%": 178, "90%": 381},
        "repeat_gap_seconds": {"25%": 10 * DAY, "50%": 25 * DAY, "75%": 62 * DAY, "90%": 127 * DAY},
        "items_below_events": {"5": 0, "20": 100},
        "test_users": 2400,
    }
    return found | changes


def lengths(*values):
    return {"events_quantiles": dict(zip(QUANTILES, values, strict=True))}


def chosen(**changes):
    found = advice.advise(statistics(**changes))
    return {choice.key: choice.value for choice in found.choices}


@st.composite
def any_statistics(draw):
    whole = st.integers(1, 10**9)
    share = st.floats(0, 1)
    ordered = sorted(draw(st.lists(st.integers(1, 10**5), min_size=9, max_size=9)))
    repeated = draw(st.one_of(st.just(0.0), st.floats(1e-9, 1)))
    gaps = [
        dict(zip(("25%", "50%", "75%", "90%"), sorted(draw(st.tuples(*[limit] * 4))), strict=True))
        for limit in (st.integers(0, 10**9), st.integers(1, 10**5), st.integers(0, 10**9))
    ]
    return statistics(
        users=draw(whole),
        items=draw(st.integers(1, 10**8)),
        train_events=draw(st.integers(0, 10**11)),
        mean_events=draw(st.floats(1, 10**5)),
        **lengths(*ordered),
        tie_share=draw(share),
        repeat_share=repeated,
        days=draw(st.floats(0, 10**4)),
        time_step=draw(st.integers(0, 10**6)),
        common_gap_share=draw(st.one_of(st.none(), share)),
        gap_seconds=gaps[0],
        repeat_gap_events=gaps[1] if repeated else {},
        repeat_gap_seconds=gaps[2] if repeated else {},
        test_users=draw(st.integers(0, 10**9)),
    )


@hypothesis.settings(max_examples=15)
@hypothesis.given(any_statistics(), st.sampled_from(["", "compressed", "full", "recent"]))
def test_advice_is_always_valid(found, mode):
    fixed = {"layout.mode": mode} if mode else {}
    made = advice.advise(found, fixed)
    keys = [choice.key for choice in made.choices]
    assert len(set(keys)) == len(keys)
    assert set(keys) <= set(advice.KEYS)
    base = table.get_config("events.parquet")
    base.layout.mode = mode or base.layout.mode
    config, taken, refused = made.applied(base)
    assert taken == made.choices
    assert not refused
    assert validate(config) is config
    assert config.data == base.data
    assert config.layout.mode == mode or not mode
    # an average over more steps than there are would be one of the start
    short = advice.advise(found, {"train.steps": 100}).config().train
    assert (short.ema, short.warmup, short.eval_every) == (0.0, 10, 10)
    assert all("\n" not in choice.reason and choice.reason for choice in made.choices)
    assert all("\n" not in note for note in made.notes)
    assert advice.advise(json.loads(json.dumps(found)), fixed) == made


@hypothesis.given(any_statistics())
@hypothesis.settings(max_examples=10)
def test_what_is_given_stays(found):
    base = table.get_config("events.parquet")
    base.model.width, base.model.heads, base.train.ema = 48, 3, 0.5
    base.loss.kind, base.layout.mode = "softmax", "recent"
    given = ("model.width", "model.heads", "train.ema", "loss.kind", "layout.mode")
    config = advice.for_data(found, base, given)
    assert (config.model.width, config.model.heads, config.train.ema) == (48, 3, 0.5)
    assert (config.loss.kind, config.layout.mode) == ("softmax", "recent")
    # counters and row updates need negatives
    assert config.model.repeat_half_lives == ()
    assert config.train.table_update == "adamw"


def test_choices_that_given_values_rule_out_are_named():
    base = Config()
    base.loss.kind = "softmax"
    _, taken, refused = advice.advise(statistics()).applied(base, ("loss.kind",))
    assert "model.repeat_half_lives" not in {choice.key for choice in taken}
    assert any(line.startswith("model.repeat_half_lives stays ()") for line in refused)
    with pytest.raises(ConfigError, match=r"unknown config key model\.widht"):
        advice.for_data(statistics(), base, ("model.widht",))


def test_histories_decide_the_layout():
    long = chosen()
    assert (long["layout.mode"], long["layout.segment_size"]) == ("compressed", 100)
    config = advice.advise(statistics()).config()
    assert 1202 <= config.layout.history <= 1400
    short = advice.advise(statistics(**lengths(1, 2, 3, 4, 6, 9, 12, 18, 40)))
    layout = short.config().layout
    assert layout.mode == "full"
    assert 18 <= layout.history <= 20
    assert any("half of the users have 4 events" in line for line in short.notes)
    # one event each: no sequence at all, and still a configuration
    assert advice.advise(statistics(**lengths(*[1] * 9))).config().layout.mode == "full"
    endless = advice.advise(statistics(**lengths(*[50_000] * 9)))
    assert endless.config().layout.history <= 16 * 128 + 128
    assert any("the longest history has 50,000 events" in line for line in endless.notes)


def test_a_given_mode_shapes_the_layout():
    found = statistics(**lengths(5, 10, 15, 20, 30, 40, 50, 60, 90))
    base = Config()
    for mode in ("compressed", "recent"):
        base.layout.mode = mode
        layout = advice.for_data(found, base, ("layout.mode",)).layout
        assert (layout.mode, layout.max_segments) == (mode, 2)
        assert layout.recent < 40 <= layout.history


def test_repeats_decide_counters_and_filters():
    shop = chosen(tie_share=0.88)
    assert not shop["eval.filter_seen"]
    assert shop["model.repeat_half_lives"] == (16.0, 128.0, 0.0)
    assert shop["model.repeat_half_times"] == (0.1, 14.0 * DAY, 90.0 * DAY)
    assert shop["loss.kind"] == "sampled_softmax"
    assert not shop["model.item_bias"]
    # half-lives follow the pace of the data, and no basket without ties
    music = chosen(
        repeat_gap_events={"25%": 8, "50%": 20, "75%": 70, "90%": 90},
        repeat_gap_seconds={"25%": 3000, "50%": 9000, "75%": DAY, "90%": 2 * DAY},
    )
    assert music["model.repeat_half_lives"] == (8.0, 64.0, 0.0)
    assert music["model.repeat_half_times"] == (3600.0, float(DAY))
    films = chosen(repeat_share=0.0, repeat_gap_events={}, repeat_gap_seconds={})
    assert films["eval.filter_seen"]
    assert films["model.item_bias"]
    assert films["model.repeat_half_lives"] == films["model.repeat_half_times"] == ()
    some = chosen(repeat_share=0.03)
    assert not some["eval.filter_seen"]
    assert some["model.repeat_half_lives"] == ()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"time_step": 0, "days": 0.0}, "all times of a user are equal"),
        ({"time_step": DAY}, "steps of 1 days"),
        ({"tie_share": 0.9, "common_gap_share": 0.9}, "90% of the events share the time"),
        ({"common_gap_share": 1.0}, "100% of the gaps are alike"),
        ({"days": 0.5}, "within 12 hours"),
    ],
)
def test_times_that_say_nothing(changes, words):
    assert chosen()["model.sasrec.time_bias"]
    found = advice.advise(statistics(**changes))
    (choice,) = (c for c in found.choices if c.key == "model.sasrec.time_bias")
    assert not choice.value
    assert words in choice.reason


def test_sizes_decide_loss_and_training():
    small = chosen(items=3000, repeat_share=0.0)
    assert small["loss.kind"] == "softmax"
    huge = advice.advise(statistics(items=30_000_000, train_events=10**10, users=10**8))
    values = {choice.key: choice.value for choice in huge.choices}
    assert (values["train.table_update"], values["model.width"]) == ("adagrad", 256)
    assert "train.ema" not in values
    assert any("an item table of width" in note for note in huge.notes)
    few = advice.advise(statistics(users=81, test_users=81, train_events=9000, mean_events=111.0))
    assert any("81 have a test target" in note for note in few.notes)
    assert few.config().train.batch_size == 8
    # ml1m.py, completejourney_hstu.py and movielens_quality.py found theirs by trials
    assert chosen()["train.batch_size"] == 16


@hypothesis.given(any_statistics())
@hypothesis.settings(max_examples=10)
def test_a_recipe_loads_to_the_same_configuration(tmp_path_factory, found):
    base = table.get_config('odd "name" \\ of\tÄ """ file.csv')
    base.data.null_values = ("NULL", "'")
    path = tmp_path_factory.mktemp("recipes") / "mine.py"
    config = advice.advise(found).recipe(path, base)
    assert to_json(load_recipe(str(path))) == to_json(config)
    assert config.data == base.data


def test_a_recipe_says_why_and_replaces_nothing(tmp_path):
    path = tmp_path / "new" / "mine.py"
    made = advice.advise(statistics())
    made.recipe(path, table.get_config("events.parquet"))
    text = path.read_text()
    assert "Layout: 12 x (100 items + 4 tokens) + a recent window of 1 to 100 events." in text
    assert f"jaxrec train --config={path} --workdir=runs/mine" in text
    assert "# 45.0% of the events are of an item that the user had before" in text
    made.recipe(path, table.get_config("events.parquet"))  # the same content
    with pytest.raises(ConfigError, match="is another recipe"):
        made.recipe(path, table.get_config("other.parquet"))
    assert path.read_text() == text
    with pytest.raises(ConfigError, match=r"must end in \.py"):
        made.recipe(tmp_path / "mine.txt")


def test_gaps_between_events_and_repeats():
    rhythm = Rhythm()
    user, items = np.array([0, 0, 0, 0, 1, 1]), np.array([7, 8, 7, 7, 7, 7])
    assert rhythm.add(user, items, np.array([0, 60, 60, 180, 500, 530])) == 3
    facts = rhythm.facts()
    assert facts["time_step"] == 30
    assert facts["gap_seconds"] == {"25%": 30, "50%": 60, "75%": 120, "90%": 120}
    assert facts["common_gap_share"] == 0.25
    assert facts["repeat_gap_events"] == {"25%": 1, "50%": 1, "75%": 2, "90%": 2}
    assert facts["repeat_gap_seconds"] == {"25%": 60, "50%": 60, "75%": 120, "90%": 120}
    assert Rhythm().facts()["gap_seconds"] == {}


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    """Short histories without repeats, all at one time."""
    rng = np.random.default_rng(0)
    rows = [(u, int(i)) for u in range(60) for i in rng.permutation(40)[:12]]
    users, items = zip(*rows, strict=True)
    file = tmp_path_factory.mktemp("log") / "events.parquet"
    columns = {"user_id": users, "item_id": items, "timestamp": [10**9] * len(rows)}
    pl.DataFrame(columns).write_parquet(file)
    return file


def test_a_table_is_trained_as_it_is_described(log, tmp_path, capsys):
    config = table.get_config(str(log))
    assert config.model.repeat_half_lives == config.model.repeat_half_times == ()
    config.model.width = 32
    advised.fill(config, ("model.width",), tmp_path)
    said = capsys.readouterr().err
    assert "advice: too few users to tell models apart: 60 have a test target" in said
    assert "chosen for this data" in said
    assert (config.layout.mode, config.eval.filter_seen) == ("full", True)
    assert not config.model.sasrec.time_bias
    prepared = prepare(config.data, tmp_path / "data")
    base = Config(data=config.data)
    assert to_json(advice.for_data(prepared, base)) == to_json(config)
    # a run that was started keeps its settings, whatever advice would say now
    config.train.steps, config.layout.segment_size = 777, 33
    workdir.write_text(tmp_path / workdir.CONFIG, to_json(config))
    again = table.get_config(str(log))
    again.train.batch_size = 4
    advised.fill(again, ("train.batch_size",), tmp_path)
    assert (again.train.steps, again.layout.segment_size, again.train.batch_size) == (777, 33, 4)
    assert asks_for_advice("configs/table.py:x.csv")
    assert not asks_for_advice("configs/quickstart.py")
    assert not asks_for_advice(None)


def test_equal_times_and_descriptions_without_targets(log, tmp_path):
    config = table.get_config(str(log))
    config.data.holdout = 12
    found = description.describe(prepare(config.data, tmp_path))
    assert (found["time_step"], found["test_users"], found["repeat_gap_events"]) == (0, 0, {})
    assert advice_facts.Facts.of(found).times_tell is False
    assert "gaps" in description.table(found)
    advice.for_data(found, config)
