"""Small files in the column layout that each data set is published in."""

import gzip
import json

import numpy as np
import polars as pl

USERS, ITEMS, EVENTS = 6, 5, 60
START = 1_683_000_000  # seconds since 1970
MERREC_EVENTS = (
    "item_view",
    "item_like",
    "item_add_to_cart_tap",
    "offer_make",
    "buy_start",
    "buy_comp",
)


def log(seed=0):
    """user, item 0..; times START.. in order, no two equal."""
    rng = np.random.default_rng(seed)
    user, item = rng.integers(0, USERS, EVENTS), rng.integers(0, ITEMS, EVENTS)
    return user, item, START + np.arange(EVENTS) * 100


def merrec(folder, **changes):
    user, item, time = log()
    frame = pl.DataFrame(
        {
            "user_id": user + 100,
            "sequence_id": user // 2,
            "session_id": np.arange(EVENTS) // 5,
            "item_id": np.arange(EVENTS) + 10**9,
            "product_id": [f"p{i}" for i in item],
            "event_id": [MERREC_EVENTS[i % 6] for i in range(EVENTS)],
            "stime": pl.Series(time * 10**6).cast(pl.Datetime("us")),
            "sequence_length": [10] * EVENTS,
            "price": [9.5] * EVENTS,
            "name": [f"thing {i}" for i in item],
            "brand_id": item,
            "brand_name": [None if i == 0 else f"brand {i}" for i in item],
            "c0_id": item,
            "c0_name": [f"top {i}" for i in item],
            "c1_id": item,
            "c1_name": [f"middle {i}" for i in item],
            "c2_id": item,
            "c2_name": [f"low {i}" for i in item],
            "item_condition_id": item,
            "item_condition_name": ["new"] * EVENTS,
            "size_id": item,
            "size_name": ["M"] * EVENTS,
            "shipper_id": item,
            "shipper_name": ["seller"] * EVENTS,
            "color": ["red"] * EVENTS,
        }
    ).with_columns(**changes)
    month = folder / "20230501"
    month.mkdir(parents=True)
    half = EVENTS // 2
    frame[:half].write_parquet(month / "000000000000.parquet")
    frame[half:].write_parquet(month / "000000000001.parquet")
    return {"path": str(folder)}


def ebnerd(folder, lists=None):
    user, item, time = log()
    moments = pl.Series(time * 10**6).cast(pl.Datetime("us"))
    item = item + 9_700_000
    for part, first in (("train", 0), ("validation", 20)):
        (folder / part).mkdir(parents=True)
        # the later history holds the clicks of the earlier part again
        past = slice(0 if part == "train" else 10, first + 20)
        clicks = slice(first + 20, first + 40)
        history = (
            pl.DataFrame(
                {
                    "user_id": user[past].astype(np.uint32),
                    "impression_time_fixed": moments[past],
                    "scroll_percentage_fixed": np.full(len(user[past]), 50, np.float32),
                    "article_id_fixed": item[past].astype(np.int32),
                    "read_time_fixed": np.full(len(user[past]), 20, np.float32),
                }
            )
            .group_by("user_id", maintain_order=True)
            .all()
        )
        if lists is not None:
            history = history.with_columns(lists)
        history.write_parquet(folder / part / "history.parquet")
        pl.DataFrame(
            {
                "impression_id": np.arange(first, first + 20).astype(np.uint32),
                "article_id": [None] * 20,
                "impression_time": moments[clicks],
                "read_time": np.full(20, 20, np.float32),
                "scroll_percentage": [None] * 20,
                "device_type": np.full(20, 2, np.int8),
                "article_ids_inview": [[int(i), 9_799_999] for i in item[clicks]],
                "article_ids_clicked": [[int(i)] for i in item[clicks]],
                "user_id": user[clicks].astype(np.uint32),
                "is_sso_user": [False] * 20,
                "session_id": np.arange(20).astype(np.uint32),
            }
        ).write_parquet(folder / part / "behaviors.parquet")
    pl.DataFrame(
        {
            "article_id": np.arange(9_700_000, 9_700_000 + ITEMS).astype(np.int32),
            "title": [f"Nyhed æøå {i}" for i in range(ITEMS)],
            "subtitle": [""] * ITEMS,
            "premium": [False] * ITEMS,
            "body": ["..."] * ITEMS,
            "topics": [["Sport", "Politik"]] * ITEMS,
            "category_str": ["sport"] * ITEMS,
        }
    ).write_parquet(folder / "articles.parquet")
    return {"path": str(folder), "duplicates": "drop"}


def _asin(item):
    return f"B00000000{item}"


def amazon_2014(folder):
    user, item, time = log()
    folder.mkdir(parents=True)
    lines = [f"A{u}USER,{_asin(i)},5.0,{t}\n" for u, i, t in zip(user, item, time, strict=True)]
    (folder / "ratings_Books.csv").write_text("".join(lines))
    with gzip.open(folder / "meta_Books.json.gz", "wt") as stream:
        for i in range(ITEMS):
            found = {"asin": _asin(i), "title": f"It's {i}", "categories": [["Books", "New"]]}
            stream.write(f"{found | {'price': 3.5, 'salesRank': {'Books': i}}}\n")
    return {
        "path": str(folder / "ratings_Books.csv"),
        "items_path": str(folder / "meta_Books.json.gz"),
        "variant": "2014",
    }


def amazon_2023(folder):
    user, item, time = log()
    folder.mkdir(parents=True)
    with gzip.open(folder / "Books.jsonl.gz", "wt") as stream:
        for u, i, t in zip(user, item, time, strict=True):
            review = {
                "rating": 5.0,
                "title": "Good",
                "text": "Very good",
                "images": [],
                "asin": f"{_asin(i)[:-1]}X",
                "parent_asin": _asin(i),
                "user_id": f"AG{u}",
                "timestamp": int(t) * 1000 + 123,
                "helpful_vote": 0,
                "verified_purchase": True,
            }
            stream.write(json.dumps(review) + "\n")
    with (folder / "meta_Books.jsonl").open("w") as stream:
        for i in range(ITEMS):
            meta = {
                "main_category": "Books",
                "title": f"Title {i}",
                "average_rating": 4.5,
                "rating_number": 10,
                "features": [],
                "description": ["Long"],
                "price": None if i else "from 3.99",
                "images": [],
                "videos": [],
                "store": None,
                "categories": ["Books", "New"],
                "details": {"Publisher": "X"},
                "parent_asin": _asin(i),
                "bought_together": None,
            }
            stream.write(json.dumps(meta) + "\n")
    return {
        "path": str(folder / "Books.jsonl.gz"),
        "items_path": str(folder / "meta_Books.jsonl"),
        "variant": "2023",
    }


def kuairand(folder, **changes):
    user, item, time = log()
    folder.mkdir(parents=True)
    names = "is_click is_like is_follow is_comment is_forward is_hate long_view play_time_ms"
    names += " duration_ms profile_stay_time comment_stay_time is_profile_enter is_rand tab"
    frame = pl.DataFrame(
        {
            "user_id": user,
            "video_id": item,
            "date": [20220408] * EVENTS,
            "hourmin": [1200] * EVENTS,
            "time_ms": time * 1000,
            **{name: np.zeros(EVENTS, np.int64) for name in names.split()},
        }
    )
    frame = frame.with_columns(
        is_click=pl.Series(np.arange(EVENTS) % 2), long_view=pl.Series(np.arange(EVENTS) % 4 // 3)
    ).with_columns(**changes)
    half = EVENTS // 2
    frame[:half].write_csv(folder / "log_standard_4_08_to_4_21_pure.csv")
    frame[half:].write_csv(folder / "log_standard_4_22_to_5_08_pure.csv")
    frame.write_csv(folder / "log_random_4_22_to_5_08_pure.csv")
    pl.DataFrame(
        {
            "video_id": range(ITEMS),
            "author_id": range(ITEMS),
            "video_type": ["NORMAL"] * ITEMS,
            "upload_dt": ["2022-04-01"] * ITEMS,
            "upload_type": ["ShortImport"] * ITEMS,
            "visible_status": [1] * ITEMS,
            "video_duration": [9000.0] * ITEMS,
            "music_id": range(ITEMS),
            "tag": ["39", "8", "12,65", None, "1"],
        }
    ).write_csv(folder / "video_features_basic_pure.csv")
    return {"path": str(folder)}


def yambda(folder, sequential=False):
    user, item, time = log()
    folder.mkdir(parents=True)
    kinds = ["listen", "like", "unlike", "listen"]
    frame = pl.DataFrame(
        {
            "uid": user.astype(np.uint32),
            "timestamp": ((time - START) // 5 * 5).astype(np.uint32),
            "item_id": item.astype(np.uint32),
            "is_organic": np.ones(EVENTS, np.uint8),
            "played_ratio_pct": pl.Series(
                [[100, None, None, 20][i % 4] for i in range(EVENTS)], dtype=pl.UInt16
            ),
            "track_length_seconds": pl.Series([200] * EVENTS, dtype=pl.UInt32),
            "event_type": [kinds[i % 4] for i in range(EVENTS)],
        }
    )
    if sequential:
        frame = frame.group_by("uid", maintain_order=True).all()
    frame.write_parquet(folder / "multi_event.parquet")
    return {"path": str(folder / "multi_event.parquet")}


def movielens(folder):
    user, item, time = log()
    folder.mkdir(parents=True)
    ratings = pl.DataFrame(
        {"userId": user + 1, "movieId": item + 10, "rating": [3.5] * EVENTS, "timestamp": time}
    )
    ratings.sort("userId", "movieId").write_csv(folder / "ratings.csv")
    pl.DataFrame(
        {
            "movieId": np.arange(ITEMS) + 10,
            "title": [f"Film, The {i}" for i in range(ITEMS)],
            "genres": ["Comedy|Drama"] * ITEMS,
        }
    ).write_csv(folder / "movies.csv")
    return {"path": str(folder), "variant": "25m"}


def table(folder, ending="csv"):
    user, item, time = log()
    folder.mkdir(parents=True)
    frame = pl.DataFrame({"user_id": user, "item_id": item, "timestamp": time})
    frame = frame.with_columns(item_id="item " + pl.col("item_id").cast(pl.String))
    write = {"csv": frame.write_csv, "jsonl": frame.write_ndjson, "parquet": frame.write_parquet}
    write[ending](folder / f"events.{ending}")
    names = pl.DataFrame({"item_id": [f"item {i}" for i in range(ITEMS)]})
    names.with_columns(title="called " + pl.col("item_id")).write_csv(folder / "items.csv")
    return {
        "path": str(folder / f"events.{ending}"),
        "items_path": str(folder / "items.csv"),
        "text_columns": ("title",),
    }


ALL = {
    "merrec": ("merrec", merrec),
    "ebnerd": ("ebnerd", ebnerd),
    "amazon 2014": ("amazon_reviews", amazon_2014),
    "amazon 2023": ("amazon_reviews", amazon_2023),
    "kuairand": ("kuairand", kuairand),
    "yambda": ("yambda", yambda),
    "yambda sequential": ("yambda", lambda folder: yambda(folder, sequential=True)),
    "movielens": ("movielens", movielens),
    "table csv": ("table", table),
    "table jsonl": ("table", lambda folder: table(folder, "jsonl")),
    "table parquet": ("table", lambda folder: table(folder, "parquet")),
}
