"""`fit`, `load` and `recommend`: the run of train.py, continued, refused, asked for top lists."""

import os
import pathlib
import signal

import jax
import numpy as np
import pandas as pd
import polars as pl
import pytest

import jaxrec
from jaxrec import ranking
from jaxrec.api import FittedModel, event_file
from jaxrec.config import Config, LayoutConfig
from jaxrec.data import pipeline, windows
from jaxrec.errors import ConfigError, DataError, WorkdirError
from jaxrec.evaluation.evaluator import TrainedModel
from jaxrec.layout import SegmentLayout
from jaxrec.runtime import workdir
from jaxrec.session import Session
from tests.api import tiny
from tests.integration.tiny import run


def assert_same_parameters(one, other):
    one, other = (m.session.trained_model().params for m in (one, other))
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.slow
def test_it_is_the_run_of_train_py(fitted, folder, tmp_path):
    settings = {
        "data.path": fitted.config.data.path,
        **{f"data.{name}_column": column for name, column in tiny.COLUMNS.items()},
        **tiny.SETTINGS,
    }
    recipe = tmp_path / "recipe.py"
    # what fit starts from is the recipe; the rest are flags
    recipe.write_text(
        "from jaxrec.api.defaults import table_config as get_config\nADVISED = True\n"
    )
    flags = [f"--config.{key}={value}" for key, value in settings.items()]
    run("train.py", f"--config={recipe}", f"--workdir={tmp_path / 'run'}", *flags)
    for name in ("dataset.json", "config.json"):
        assert (folder / name).read_text() == (tmp_path / "run" / name).read_text()
    assert_same_parameters(fitted, jaxrec.load(tmp_path / "run"))


def test_the_same_call_returns_the_finished_model(fitted, folder, capfd):
    frame = pl.LazyFrame(tiny.events())
    again = jaxrec.fit(frame, workdir=folder, **tiny.COLUMNS, **tiny.SETTINGS)
    assert "continuing from step 16" in capfd.readouterr().err
    assert_same_parameters(fitted, again)
    assert isinstance(again.recommend([100], k=1), pl.DataFrame)
    assert len(list((folder / "frames").iterdir())) == 1


@pytest.mark.parametrize(
    ("frame", "changed", "message"),
    [
        (tiny.events(seed=1), {}, "belongs to another dataset"),
        (tiny.events(), {"layout.tokens": 3}, r"layout.tokens=2 there, 3 here"),
    ],
)
def test_other_data_and_settings_are_refused(fitted, folder, frame, changed, message):
    with pytest.raises(WorkdirError, match=message):
        jaxrec.fit(frame, workdir=folder, **tiny.COLUMNS, **tiny.SETTINGS | changed)
    assert [f"{path}" for path in (folder / "frames").iterdir()] == [fitted.config.data.path]


def test_ctrl_c_saves_and_the_same_call_continues(fitted, tmp_path, monkeypatch):
    def interrupted(self):
        def evaluate(params):
            os.kill(os.getpid(), signal.SIGINT)
            raise AssertionError("validation was not given up")

        return evaluate

    call = {"workdir": tmp_path, **tiny.COLUMNS, **tiny.SETTINGS}
    with monkeypatch.context() as patched:
        patched.setattr(Session, "validation", interrupted)
        with pytest.raises(KeyboardInterrupt):
            jaxrec.fit(tiny.events(), **call)
    assert (tmp_path / "checkpoints").is_dir()
    assert_same_parameters(fitted, jaxrec.fit(tiny.events(), **call))


def test_data_that_the_reader_refuses_is_named_events(tmp_path):
    frame = tiny.events().with_columns(when=-pl.col("when"))
    with pytest.raises(DataError, match=r"^events: column 'when' is negative"):
        jaxrec.fit(frame, workdir=tmp_path, **tiny.COLUMNS, **tiny.SETTINGS)
    assert not list((tmp_path / "frames").iterdir())


def test_wrong_places_are_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WorkdirError, match="is a file"):
        jaxrec.fit(tiny.events(), workdir=tmp_path / "file", **tiny.COLUMNS)
    with pytest.raises(WorkdirError, match="no such run"):
        jaxrec.load(tmp_path / "nothing")
    with pytest.raises(WorkdirError, match=r"no config\.json: train there first"):
        jaxrec.load(tmp_path)
    with pytest.raises(ConfigError, match="library='numpy'"):
        jaxrec.load(tmp_path, library="numpy")
    with pytest.raises(DataError, match="no such file"):
        jaxrec.fit(tmp_path / "no.csv", workdir=tmp_path / "run", **tiny.COLUMNS)


def test_a_moved_run_finds_its_events(fitted, folder, tmp_path):
    config = workdir.load_config(folder)
    config.data.path = str(tmp_path / "frames" / pathlib.Path(config.data.path).name)
    assert event_file.moved(config.data, folder) == fitted.config.data.path


# -- recommendations -------------------------------------------------------------------------


def test_recommendations_are_a_frame(fitted, capfd):
    users = pd.DataFrame({"customer": [103, 999, 101, 103]}, index=[7, 7, 7, 7])
    frame = fitted.recommend(users, k=4)
    assert list(frame.columns) == ["customer", "product", "score", "rank", "known"]
    assert frame["customer"].tolist() == [103] * 4 + [999] * 4 + [101] * 4 + [103] * 4
    assert frame["rank"].tolist() == [1, 2, 3, 4] * 4
    unknown = frame[frame["customer"] == 999]
    assert not unknown["known"].any()
    popular = fitted.session.catalog
    assert unknown["product"].tolist()[0] == popular.vocabulary.ids[popular.counts[1:].argmax()]
    assert unknown["score"].tolist() == sorted(popular.counts[1:].tolist())[::-1][:4]
    assert frame["known"].sum() == 12
    assert "1 of 4 users are unknown" in capfd.readouterr().err
    assert frame.iloc[:4]["product"].tolist() == frame.iloc[12:]["product"].tolist()


def test_what_a_list_may_hold(fitted):
    full = fitted.recommend([101], k=1000)
    assert len(full) == fitted.session.prepared.num_items  # a list ends with the last item
    best, second, third = full["product"].tolist()[:3]
    assert fitted.recommend([101], k=1, exclude=[best, second])["product"].tolist() == [third]
    among = fitted.recommend([101, 999], k=5, candidates=pd.Series([third, second, "no such"]))
    assert among["product"].tolist()[:2] == [second, third]
    assert len(among) == 4
    prepared = fitted.session.prepared
    dense = prepared.users.tolist().index(101)
    seen = set(prepared.vocabulary.ids[prepared.source[dense].items - 1])
    unseen = fitted.recommend([101], k=1000, exclude_seen=True)["product"].tolist()
    assert set(unseen) == set(prepared.vocabulary.ids) - seen
    assert len(fitted.recommend(k=2)) == 2 * prepared.num_users
    assert len(fitted.recommend([], k=2)) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"users": ["u1"]}, "user ids are integers, not text"),
        ({"users": 5}, "a sequence of ids is needed"),
        ({"users": [101], "k": 0}, "k=0: a positive integer"),
        ({"users": [101], "exclude": "p01"}, "a list of item ids is needed"),
        ({"users": [101], "candidates": [[1], [2]]}, "2 entries for 1 users"),
        ({"users": [101], "now": [1, 2]}, "now has shape"),
        ({"users": pl.DataFrame({"user": [1]})}, "'customer' is missing"),
    ],
)
def test_wrong_requests_are_refused(fitted, arguments, message):
    with pytest.raises(DataError, match=message):
        fitted.recommend(**arguments)


def test_similar_items(fitted):
    frame = fitted.similar_items(["p03", "p01"], k=3)
    assert frame["product"].tolist() == ["p03"] * 3 + ["p01"] * 3
    assert not (frame["product"] == frame["similar"]).any()
    vectors = np.asarray(fitted.ranker.model.item_vectors(fitted.ranker.params).vectors)
    one, other = fitted.session.prepared.vocabulary.encode(["p03", frame["similar"].iloc[0]])
    cosine = vectors[one] @ vectors[other] / np.linalg.norm(vectors[[one, other]], axis=1).prod()
    assert frame["score"].iloc[0] == pytest.approx(cosine, abs=1e-5)
    with pytest.raises(DataError, match="does not know item 'tea'"):
        fitted.similar_items(["tea"])


@pytest.mark.parametrize("mode", ["compressed", "full", "recent"])
@pytest.mark.parametrize("recent_min", [0, 1, 3])
def test_the_next_event_is_asked_for_as_evaluation_asks(mode, recent_min):
    """Without each user's last event the rows are those of evaluation, which predict it."""
    rng = np.random.default_rng(0)
    lengths = np.asarray([2, 3, 4, 5, 9, 10, 11, 30])
    histories = [(rng.integers(1, 9, n), np.sort(rng.integers(0, 99, n))) for n in lengths]
    layout = LayoutConfig(
        mode=mode, segment_size=4, tokens=2, max_segments=3, recent_min=recent_min
    )
    users = np.arange(len(lengths))
    cut = windows.eval_cuts(users, lengths - 1, lengths, layout)
    expected = windows.lay_out(
        cut,
        SegmentLayout.from_config(layout),
        *(np.concatenate(column) for column in zip(*histories, strict=True)),
        base=np.cumsum([0, *lengths])[:-1],
    )
    last = np.asarray([times[-1] for _, times in histories])
    known = [Record(items[:-1], times[:-1]) for items, times in histories]
    (found,) = pipeline.next_batches(
        Known(known), layout, users, batch_size=len(users), now=last.astype(np.int32)
    )
    asked = found.weights > 0
    np.testing.assert_array_equal(found.weights, expected.weights)
    np.testing.assert_array_equal(found.items, np.where(asked, 0, expected.items))
    for name in ("times", "lengths", "user", "history"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


class Record:
    def __init__(self, items, times):
        self.items, self.times = items, times


class Known:
    """Prepared data of some histories."""

    def __init__(self, records):
        self.source, self._records = self, records
        self.lengths = np.asarray([len(record.items) for record in records])

    def __getitems__(self, users):
        return [self._records[user] for user in users]


@pytest.mark.parametrize("mode", ["full", "recent"])
def test_modes_without_states_recommend_too(fitted, tmp_path, mode):
    config: Config = workdir.load_config(fitted.workdir)
    config.layout.mode, config.data.cache_dir = mode, str(fitted.workdir / "data")
    session = Session(config, tmp_path)
    params = session.model.init(jax.random.key(0))
    session.trained_model = lambda: TrainedModel(session.model, params, session.eval_batches)
    model = FittedModel(session)
    frame = model.recommend([105, 102], k=3)
    users = np.asarray([session.prepared.users.tolist().index(user) for user in (105, 102)])
    (batch,) = pipeline.next_batches(session.prepared, config.layout, users, batch_size=2)
    rows, slots = np.nonzero(batch.weights)
    queries = jax.tree.map(lambda a: a[rows, slots], jax.jit(session.model.predict)(params, batch))
    scores = ranking.scores(queries, session.model.item_index(params))
    best = np.argsort(-np.asarray(scores)[:, 1:], axis=1)[:, :3] + 1
    assert frame["product"].to_list() == session.prepared.vocabulary.decode(best).ravel().tolist()
    with pytest.raises(ConfigError, match="keeps no user states"):
        model.states(tmp_path / "states")


# -- figures ---------------------------------------------------------------------------------


def test_figures(fitted, folder):
    figures = fitted.evaluate()
    assert list(figures.rows) == ["compressed", "popularity"]
    recall = figures.rows["compressed"].metrics["recall@10"]
    assert recall.low <= recall.mean <= recall.high
    assert list(figures.ratios) == ["compressed / popularity"]
    assert figures.protocol["users"] == 24
    frame = figures.to_frame()
    chosen = frame[(frame["row"] == "compressed") & (frame["metric"] == "recall@10")]
    assert chosen["mean"].tolist() == [recall.mean]
    assert "compressed" in repr(figures)
    assert figures._repr_html_().count("<table>") == 2
    assert (folder / "results.json").is_file()
    with pytest.raises(ConfigError, match=r"only eval\.\*"):
        fitted.evaluate(**{"train.steps": 3})
    with pytest.raises(ConfigError, match="'recents' is no row"):
        fitted.evaluate(**{"eval.mode": "recents"})
