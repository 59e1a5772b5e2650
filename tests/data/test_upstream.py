"""Every published layout: prepared, trained on, and refused where it is broken."""

import functools
import gzip
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from jaxrec.config import Config, DataConfig, validate
from jaxrec.data import datasets, description, pipeline, prepare
from jaxrec.errors import DataError
from tests.data import source, upstream


def settings(name, folder, **changes):
    dataset, write = upstream.ALL[name]
    return DataConfig(
        dataset=dataset,
        **{"min_item_events": 1, "min_user_events": 1, **write(folder / "in"), **changes},
    )


@pytest.mark.parametrize("name", upstream.ALL)
def test_prepares_what_was_logged(name, tmp_path):
    config = settings(name, tmp_path)
    validate(Config(data=config))
    data = prepare(config, tmp_path / "out")
    user, item, time = upstream.log()
    assert (data.num_users, data.num_items) == (upstream.USERS, upstream.ITEMS)
    assert data.report["events"] == upstream.EVENTS
    raw = data.vocabulary.ids
    for index in range(upstream.USERS):
        wanted = item[user == index]
        items, times = data.histories.user(index)
        # ids differ between the layouts, all of them end in the item's number
        found = [int(str(raw[i - 1])[-1]) for i in items]
        assert found == wanted.tolist()
        assert times.tolist() == (time[user == index] - upstream.START).tolist()
    if not name.startswith(("yambda", "kuairand")):
        first = int(raw[0]) if raw.dtype.kind == "i" else int(raw[0][-1])
        assert any(str(first)[-1] in text[1] for text in data.texts.values())


@functools.cache
def training():
    """Layout, initial parameters and a step (params, batch) -> (loss, params), compiled once."""
    import jax
    import optax

    from jaxrec.layout import SegmentLayout
    from jaxrec.model import recommender

    config = Config()
    config.layout.segment_size, config.layout.max_segments = 4, 2
    config.layout.tokens = config.model.layers = config.model.heads = 1
    config.model.width = 4
    layout = SegmentLayout.from_config(config.layout)
    model = recommender.build(config.model, config.loss, layout, upstream.ITEMS)
    params = jax.jit(model.init)(jax.random.key(0))

    @jax.jit
    def step(params, batch):
        def mean(params):
            total, weight, _ = model.loss(params, batch, rng=jax.random.key(1), train=True)
            return total / weight

        loss, grads = jax.value_and_grad(mean)(params)
        return loss, optax.apply_updates(params, jax.tree.map(lambda g: -0.01 * g, grads))

    return config.layout, params, step


@pytest.mark.parametrize("name", upstream.ALL)
def test_describes_and_trains_one_step(name, tmp_path):
    layout, params, step = training()
    data = prepare(settings(name, tmp_path), tmp_path / "out")
    found = description.describe(data)
    assert (found["users"], found["items"]) == (upstream.USERS, upstream.ITEMS)
    assert "events per user" in description.table(found)
    batch = next(pipeline.train_batches(data, layout, batch_size=8, seed=0, workers=0))
    before, params = step(params, batch)
    after, _ = step(params, batch)
    assert np.isfinite(before)
    assert after < before


def test_event_types(tmp_path):
    for name, types in {
        "merrec": upstream.MERREC_EVENTS,
        "kuairand": ("exposure", "click", "long_view"),
        "yambda": ("listen", "like", "unlike", "skip"),
    }.items():
        data = prepare(settings(name, tmp_path / name), tmp_path / "out")
        assert sorted(data.event_types) == sorted(types)
        kinds = np.concatenate([data.source[u].event for u in range(data.num_users)])
        share = np.bincount(kinds, minlength=len(types)) / len(kinds)
        assert share.min() > 0.1
        chosen = settings(name, tmp_path / f"{name} chosen", event_types=types[-1:])
        found = prepare(chosen, tmp_path / "out").report["events"]
        assert found == (kinds == data.event_types.index(types[-1])).sum()


def test_texts(tmp_path):
    config = settings("merrec", tmp_path)
    texts = prepare(config, tmp_path / "out").texts
    assert set(texts) == {"name", "brand_name", "c0_name", "c1_name", "c2_name"}
    assert sorted(texts["brand_name"]) == ["", "", "brand 1", "brand 2", "brand 3", "brand 4"]
    shutil.rmtree(config.path)
    texts = prepare(settings("ebnerd", tmp_path), tmp_path / "out").texts
    assert texts["topics"][1] == "Sport, Politik"
    assert "æøå" in texts["title"][1]
    shutil.rmtree(config.path)
    texts = prepare(settings("amazon 2014", tmp_path), tmp_path / "out").texts
    assert texts["title"][1].startswith("It's")
    assert texts["categories"][1] == "Books, New"
    shutil.rmtree(config.path)
    config = settings("amazon 2023", tmp_path, text_columns=("main_category", "title"))
    assert list(prepare(config, tmp_path / "out").texts) == ["main_category", "title"]


def files_of(config):
    path = Path(config.path)
    if path.is_file():
        return [path]
    return sorted(f for f in path.rglob("*") if f.is_file() and "random" not in f.name)


@pytest.mark.parametrize("name", upstream.ALL)
def test_a_corrupt_file_is_named_and_nothing_is_left(name, tmp_path):
    config = settings(name, tmp_path)
    for file in files_of(config):
        content = file.read_bytes()
        if file.suffix in (".csv", ".json"):
            damaged = content.replace(b",", b"\xff\xfe,", 3)  # no UTF-8 either
        else:
            damaged = content[: len(content) // 2 - 5]  # not at the end of a line
        file.write_bytes(damaged)
        if file.name.startswith("video_features"):
            file.write_bytes(content[:5])
        with pytest.raises(DataError, match=str(file.name).replace(".", r"\.")):
            prepare(config, tmp_path / "out")
        assert not [f for f in (tmp_path / "out").iterdir() if f.is_dir()]
        file.write_bytes(content)
    assert prepare(config, tmp_path / "out").report["events"] == upstream.EVENTS


@pytest.mark.parametrize(
    ("name", "file", "column"),
    [
        ("merrec", "20230501/000000000000.parquet", "product_id"),
        ("merrec", "20230501/000000000001.parquet", "c1_name"),
        ("ebnerd", "train/history.parquet", "impression_time_fixed"),
        ("ebnerd", "validation/behaviors.parquet", "article_ids_clicked"),
        ("ebnerd", "articles.parquet", "topics"),
        ("yambda", "multi_event.parquet", "event_type"),
    ],
)
def test_wrong_schema_names_what_is_missing_and_what_is_there(name, file, column, tmp_path):
    config = settings(name, tmp_path)
    path = tmp_path / "in" / file
    pl.read_parquet(path).rename({column: "other"}).write_parquet(path)
    with pytest.raises(DataError, match=rf"{path.name}: column '{column}' is missing") as error:
        prepare(config, tmp_path / "out")
    assert "'other'" in str(error.value)
    assert "data.path" in str(error.value)


def test_wrong_schema_of_text_files(tmp_path):
    config = settings("kuairand", tmp_path / "k")
    log = Path(config.path) / "log_standard_4_08_to_4_21_pure.csv"
    log.write_text(log.read_text().replace("video_id", "photo_id", 1))
    with pytest.raises(DataError, match=r"4_21_pure\.csv: column 'video_id' is missing.*photo_id"):
        prepare(config, tmp_path / "out")
    config = settings("amazon 2023", tmp_path / "a")
    with gzip.open(config.path, "rt") as stream:
        text = stream.read()
    with gzip.open(config.path, "wt") as stream:
        stream.write(text.replace("parent_asin", "product"))
    with pytest.raises(DataError, match=r"Books\.jsonl\.gz: column 'parent_asin' is missing"):
        prepare(config, tmp_path / "out")
    config = settings("amazon 2014", tmp_path / "b")
    Path(config.path).write_text("A1,B000000001,5.0\n")
    with pytest.raises(DataError, match=r"ratings_Books\.csv"):
        prepare(config, tmp_path / "out")


def test_swapped_columns_of_2018(tmp_path):
    config = settings("amazon 2014", tmp_path)
    frame = pl.read_csv(config.path, has_header=False)
    frame[:, [1, 0, 2, 3]].write_csv(config.path, include_header=False)
    with pytest.raises(DataError, match=r"'user' holds product ids .*files of 2018"):
        prepare(config, tmp_path / "out")


def test_items_of_another_release(tmp_path):
    config = settings("amazon 2014", tmp_path / "14")
    other = settings("amazon 2023", tmp_path / "23")
    config.items_path = other.items_path
    with pytest.raises(DataError, match=r"meta_Books\.jsonl: line 1 is no item of 2014"):
        prepare(config, tmp_path / "out")
    other.variant = "2013"
    with pytest.raises(DataError, match=r"data\.variant='2013': allowed are 2014, 2023"):
        prepare(other, tmp_path / "out")


def test_units_and_large_ids_of_the_sources(tmp_path):
    """Seconds where milliseconds belong and the other way round, ids of 2^63."""
    config = settings("kuairand", tmp_path / "a")
    log = Path(config.path) / "log_standard_4_22_to_5_08_pure.csv"
    frame = pl.read_csv(log)
    frame.with_columns(pl.col("time_ms") // 1000).write_csv(log)
    with pytest.raises(DataError, match=r"5_08_pure\.csv: column 'time_ms'.*look like seconds"):
        prepare(config, tmp_path / "out")
    frame.with_columns(user_id=pl.lit("9223372036854775808")).write_csv(log)
    with pytest.raises(DataError, match=r"5_08_pure\.csv.*(9223372036854775808|i64)"):
        prepare(config, tmp_path / "out")
    config = settings("merrec", tmp_path / "b")
    shard = Path(config.path) / "20230501" / "000000000001.parquet"
    frame = pl.read_parquet(shard)
    frame.with_columns(user_id=pl.lit(2**63, dtype=pl.UInt64)).write_parquet(shard)
    with pytest.raises(DataError, match=r"001\.parquet: column types .*UInt64"):
        prepare(config, tmp_path / "out")
    config = settings("amazon 2023", tmp_path / "c")
    with gzip.open(config.path, "rt") as stream:
        text = stream.read()
    with gzip.open(config.path, "wt") as stream:
        stream.write(text.replace('123, "helpful', ', "helpful'))
    with pytest.raises(DataError, match=r"'timestamp' holds \d{10}, as milliseconds.*seconds"):
        prepare(config, tmp_path / "out")


def test_nulls_of_the_sources(tmp_path):
    config = settings("merrec", tmp_path)
    shard = Path(config.path) / "20230501" / "000000000001.parquet"
    frame = pl.read_parquet(shard)
    for column in ("user_id", "product_id", "stime", "event_id"):
        hole = pl.when(pl.int_range(pl.len()) == 7).then(None).otherwise(pl.col(column))
        frame.with_columns(hole.alias(column)).write_parquet(shard)
        with pytest.raises(DataError, match=rf"001\.parquet: column '{column}'.*(null|float)"):
            prepare(config, tmp_path / "out")
    config.incomplete = "drop"
    assert prepare(config, tmp_path / "out").report["events"] == upstream.EVENTS - 1


def test_lists_of_different_lengths(tmp_path):
    short = pl.col("read_time_fixed").list.head(1)
    written = upstream.ebnerd(tmp_path / "in", lists=short)
    config = DataConfig(dataset="ebnerd", min_item_events=1, min_user_events=1, **written)
    with pytest.raises(DataError, match=r"history\.parquet: the lists of row 0 differ in length"):
        prepare(config, tmp_path / "out")


def test_ebnerd_repeats_clicks_unless_told(tmp_path):
    config = settings("ebnerd", tmp_path, duplicates="keep")
    with pytest.raises(DataError, match=r"Set data\.duplicates=drop"):
        prepare(config, tmp_path / "out")
    config.variant = "train"
    assert prepare(config, tmp_path / "out").report["events"] == 40


def test_folders_without_the_files(tmp_path):
    (tmp_path / "empty").mkdir()
    for dataset, match in {
        "merrec": r"holds no \*\*/\*\.parquet",
        "kuairand": r"holds no log_standard_\*\.csv",
        "ebnerd": r"there is no train/history\.parquet",
        "yambda": "is a folder",
    }.items():
        config = DataConfig(dataset=dataset, path=str(tmp_path / "empty"), duplicates="drop")
        with pytest.raises(DataError, match=match):
            prepare(config, tmp_path / "out")


@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz", "csv.zst", "csv.gz"])
def test_tables_in_other_files(ending, tmp_path):
    user, item, time = upstream.log()
    frame = pl.DataFrame({"user_id": user, "item_id": item, "timestamp": time})
    file = tmp_path / f"events.{ending}"
    kind = {"gz": "gzip", "zst": "zstd"}.get(ending.split(".")[-1], "uncompressed")
    write = frame.lazy().sink_ndjson if ending.startswith("jsonl") else frame.lazy().sink_csv
    write(file, compression=kind)
    events, _ = source.read(DataConfig(dataset="table", path=str(file)), tmp_path)
    assert events.user.tolist() == user.tolist()
    assert events.item.tolist() == item.tolist()
    assert events.time.tolist() == time.tolist()
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2 + 1])
    with pytest.raises(DataError, match=rf"{file.name}"):
        source.read(DataConfig(dataset="table", path=str(file)), tmp_path)


def test_every_reader_says_what_it_reads():
    import importlib

    from jaxrec.config import CHOICES

    for name in CHOICES["data.dataset"]:
        module = importlib.import_module(f"jaxrec.data.datasets.{datasets.MODULES.get(name, name)}")
        assert callable(module.read)
        if name not in (*datasets.TABLES, "synthetic", "completejourney"):
            for part in ("icence", "data.path"):
                assert part in module.__doc__, (name, part)
    assert datasets.TABLE_KEYS
