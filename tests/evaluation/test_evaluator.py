"""Evaluation against slow definitions, on a small prepared data set."""

import json

import jax
import numpy as np
import pytest

from jaxrec import data
from jaxrec.config import Config
from jaxrec.data import pipeline
from jaxrec.errors import ConfigError
from jaxrec.evaluation import baselines, evaluator, rendering, report, terminal
from jaxrec.evaluation.ranks import Ranks, kinds_of, model_ranks
from jaxrec.layout import SegmentLayout
from jaxrec.model import recommender
from jaxrec.ranking import ItemIndex
from jaxrec.types import ItemVectors, Queries
from tests.model import trained
from tests.reference import metrics as reference


def make_config():
    config = Config()
    config.data.dataset = "synthetic"
    config.data.min_item_events = 1
    config.data.holdout = 3
    synthetic = config.data.synthetic
    synthetic.users, synthetic.items, synthetic.events, synthetic.gap = 12, 40, 30, 12
    synthetic.interests = 4
    config.layout.segment_size, config.layout.tokens, config.layout.max_segments = 5, 2, 3
    config.model.width, config.model.heads, config.model.layers = 8, 2, 1
    config.model.repeat_half_lives = (4.0, 0.0)
    config.loss.kind = "sampled_softmax"
    config.eval.bootstrap, config.eval.batch_size = 50, 4
    config.eval.ks, config.eval.buckets = (1, 10), (20, 30)
    return config


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    return data.prepare(make_config().data, tmp_path_factory.mktemp("data"))


def trained_model(prepared, config, seed=0):
    layout = SegmentLayout.from_config(config.layout)
    model = recommender.build(config.model, config.loss, layout, prepared.num_items)
    params = trained.moved(model.init(jax.random.key(seed)), seed + 1)

    def batches(recent_only=False):
        return pipeline.eval_batches(
            prepared,
            config.layout,
            split="test",
            batch_size=config.eval.batch_size,
            recent_only=recent_only,
        )

    return evaluator.TrainedModel(model, params, batches, lambda: batches(True))


@pytest.fixture(scope="module")
def result(prepared):
    config = make_config()
    config.eval.full_workdir, config.eval.recent_workdir = "full", "recent"
    others = {}
    for seed, mode in ((3, "full"), (5, "recent")):
        other = make_config()
        other.layout.mode = mode
        others[mode] = trained_model(prepared, other, seed)
    lines = []
    value = evaluator.evaluate(
        config,
        trained_model(prepared, config),
        counts=prepared.counts,
        history=lambda user: prepared.source[user].items,
        others=others,
        say=lines.append,
    )
    return value, lines


def test_every_row_ranks_the_same_targets(result, prepared):
    value, lines = result
    names = [row["name"] for row in value["rows"]]
    assert names == [
        "compressed",
        "masked",
        "without-tokens",
        "recent",
        "full",
        "popularity",
        "copy-last",
        "frequency-last-5",
        "frequency-all",
    ]
    assert {(row["users"], row["targets"]) for row in value["rows"]} == {(12, 36)}
    # a slow machine also says how many targets are done
    begun = [line for line in lines if line.startswith("evaluating") and ":" not in line]
    assert begun == [f"evaluating {name}" for name in names]


def test_both_paths_agree(result):
    value, _ = result
    compressed, masked = value["rows"][:2]
    assert compressed["metrics"] == masked["metrics"]
    assert value["paths"]["score_difference"] <= 1e-5
    assert value["paths"]["ranks_that_differ"] == 0
    assert value["rows"][2]["metrics"] != masked["metrics"]


def test_popularity_and_frequency_follow_their_definition(result, prepared):
    value, _ = result
    counts = prepared.counts
    found = {"popularity": [], "frequency-all": []}
    for user in range(len(prepared.source)):
        events = prepared.source[user].items
        hits = {name: [] for name in found}
        for t in range(len(events) - 3, len(events)):
            past, target = events[:t].tolist(), events[t]
            popular = sorted(range(1, len(counts)), key=lambda v: -counts[v])
            # equally popular items count against the rule
            above = [v for v in popular if counts[v] >= counts[target] and v != target]
            hits["popularity"].append(len(above) < 10)
            own = sorted(set(past), key=lambda v: (-past.count(v), past[::-1].index(v)))
            behind = [v for v in above if v not in own]
            rank = own.index(target) if target in own else len(own) + len(behind)
            hits["frequency-all"].append(rank < 10)
        for name in found:
            found[name].append(np.mean(hits[name]))
    for row in value["rows"]:
        if row["name"] in found:
            mean = row["metrics"]["recall@10"]["mean"]
            assert mean == pytest.approx(np.mean(found[row["name"]])), row["name"]


def test_figures_carry_protocol_cost_and_intervals(result):
    value, _ = result
    assert json.loads(json.dumps(value)) == value
    assert value["protocol"]["split"].startswith("test: last 3 events")
    assert value["protocol"]["ties"] == "count against the model"
    assert value["protocol"]["model"].startswith("hstu, 1 layers of width 8; 2000 training steps")
    assert "Recall@10 0.526" in value["protocol"]["planted returns"]  # 10 of 19
    rows = {row["name"]: row for row in value["rows"]}
    assert rows["compressed"]["request_flops"] < rows["full"]["request_flops"]
    assert rows["compressed"]["state_bytes"] > 0
    assert rows["without-tokens"]["state_bytes"] == rows["recent"]["state_bytes"] == 0
    assert rows["popularity"]["request_flops"] is None
    for row in rows.values():
        assert sum(bucket["users"] for bucket in row["buckets"].values()) == row["users"]
        for interval in row["metrics"].values():
            assert interval["low"] <= interval["mean"] <= interval["high"]
        assert 0 < row["coverage"] <= 1
    assert set(value["comparisons"]) >= {"compressed / full", "masked / full"}
    table = terminal.format_table(value, verbose=True)
    assert all(f"\n{name} " in f"\n{table}" for name in rows)
    assert "seen items: not filtered" in table
    assert all(f"| {name} |" in rendering.markdown(value) for name in rows)


def test_targets_are_told_apart_by_when_the_user_had_them(prepared, result):
    value, _ = result
    config = make_config()
    batches = pipeline.eval_batches(prepared, config.layout, split="test", batch_size=4)
    index = ItemIndex.of(ItemVectors(np.zeros((prepared.num_items + 1, 2), np.float32)))
    targets = model_ranks(
        lambda params, batch: Queries(np.zeros((*batch.items.shape, 2), np.float32)),
        None,
        index,
        batches,
    )
    history = lambda user: prepared.source[user].items  # noqa: E731
    returning = lambda user: prepared.source[user].returning  # noqa: E731
    kinds = kinds_of(targets, history, 5, returning)
    assert kinds["planted return"].any()
    for row, (user, position, item) in enumerate(
        zip(targets.user, targets.position, targets.item, strict=True)
    ):
        past = history(int(user))[:position].tolist()
        where = "never" if item not in past else "last 5" if item in past[-5:] else "earlier"
        assert [k for k in ("last 5", "earlier", "never") if kinds[k][row]] == [where]
        if kinds["planted return"][row]:
            assert where == "earlier"
    for row in value["rows"]:
        counts = {label: part["targets"] for label, part in row["kinds"].items()}
        assert counts == {k: int(m.sum()) for k, m in kinds.items() if k in counts}
        assert sum(counts.values()) == row["targets"]


def test_seen_items_are_left_out(prepared):
    config = make_config()
    config.eval.filter_seen = True
    config.eval.mode = "masked,frequency-all"
    trained = trained_model(prepared, config)
    history = lambda user: prepared.source[user].items  # noqa: E731
    value = evaluator.evaluate(config, trained, counts=prepared.counts, history=history)
    assert value["protocol"]["seen items"] == "filtered"
    ranks = model_ranks(
        jax.jit(trained.model.predict),
        trained.params,
        trained.model.item_index(trained.params),
        trained.batches(),
        history_items=jax.jit(trained.model.history_items_before),
        history=history,
    )
    for user, position, item, rank in zip(
        ranks.user, ranks.position, ranks.item, ranks.rank, strict=True
    ):
        seen = set(history(int(user))[:position].tolist()) - {int(item)}
        assert rank < prepared.num_items - len(seen)
    starts = np.flatnonzero(np.diff(ranks.user, prepend=-1))
    for start, best in zip(starts, ranks.lists, strict=True):
        past = history(int(ranks.user[start]))[: ranks.position[start]]
        assert not set(best.tolist()) & set(past.tolist())


def test_ranks_of_a_known_predictor(prepared):
    """A predictor that is a fixed table: ranks equal brute force for every target."""
    config = make_config()
    rng = np.random.default_rng(0)
    table = rng.normal(size=(prepared.num_items + 1, 4)).astype(np.float32)
    wishes = rng.normal(size=(12, 4)).astype(np.float32)

    def predict(params, batch):
        x = wishes[np.maximum(batch.user, 0)]
        return Queries(np.repeat(x[:, None], batch.items.shape[1], axis=1))

    batches = pipeline.eval_batches(prepared, config.layout, split="test", batch_size=4)
    ranks = model_ranks(predict, None, ItemIndex.of(ItemVectors(table)), batches)
    assert len(ranks.rank) == 36
    for user, position, item, rank in zip(
        ranks.user, ranks.position, ranks.item, ranks.rank, strict=True
    ):
        assert prepared.source[int(user)].items[position] == item
        assert rank == reference.rank(wishes[user], table, item)
    best = reference.top(wishes[ranks.user[0]], table, 10)[1]
    assert ranks.lists[0].tolist() == best


def test_wrong_rows_are_refused_before_any_work(prepared):
    config = make_config()
    config.eval.mode = "compressed,best"
    with pytest.raises(ConfigError, match=r"eval\.mode=.*'best' is no row"):
        evaluator.chosen(config)
    for mode in ("full", "recent"):
        config.eval.mode = mode
        with pytest.raises(ConfigError, match=rf"{mode} needs eval\.{mode}_workdir"):
            evaluator.chosen(config)
        setattr(config.eval, f"{mode}_workdir", "folder")
        assert list(evaluator.chosen(config)) == [mode]
    # the run's own row is not another run's
    config.layout.mode = "recent"
    assert evaluator.beside(config) == ("full",)


def test_the_share_of_the_gap_is_paired_over_users(result):
    value, _ = result
    means = {row["name"]: row["metrics"]["recall@10"]["mean"] for row in value["rows"]}
    closed = value["gap_closed"]
    assert list(closed) == ["recall@10", "ndcg@10", "mrr"]
    found, gap = closed["recall@10"], means["full"] - means["recent"]
    assert found["gap"]["mean"] == pytest.approx(gap)
    assert 0 <= found["without_gap"] <= 1
    if gap > 0:
        share = (means["compressed"] - means["recent"]) / gap
        assert found["share"]["mean"] == pytest.approx(share)
    else:
        assert found["share"]["mean"] is None
    table, markdown = terminal.format_table(value, verbose=True), rendering.markdown(value)
    assert "gap closed, mrr: " in table
    assert "| compressed between recent and full | Recall@10 | NDCG@10 | MRR |" in markdown


def test_rows_of_other_targets_are_not_compared(prepared):
    ranks = Ranks(*(np.asarray(a) for a in ([0, 1], [3, 3], [1, 1], [0, 5])), None)
    other = ranks._replace(user=np.asarray([0, 2]))
    with pytest.raises(ValueError, match="cannot be compared"):
        report.ratio(ranks, other, "recall", make_config())


def test_copy_last_puts_the_newest_first():
    history = np.asarray([3, 1, 2, 1])
    assert baselines.by_recency(history).tolist() == [1, 2, 3]
    assert baselines.by_frequency(history).tolist() == [1, 2, 3]
    assert baselines.by_frequency(np.asarray([2, 2, 1, 3])).tolist() == [2, 3, 1]
