"""Raw ids in, raw ids out: what the recommender does with everything it may be given."""

import itertools

import numpy as np
import pytest

from jaxrec.config import Config, ServingConfig
from jaxrec.errors import DataError, StoreError
from jaxrec.serving import AppendResult, Recommender, state_rows
from jaxrec.serving.buckets import BATCH
from tests.serving import standin
from tests.serving.standin import ITEMS, ORIGIN, N

RAW = np.arange(ITEMS) * 10 + 1000


def scores_by_item(rec, store, user, **options):
    items, scores = rec.recommend(store, [user], k=ITEMS, **options)
    order = np.argsort(items[0])
    return scores[0][order]


def assert_close(actual, expected):
    spread = expected.max() - expected.min()
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * spread)


def test_scores_are_those_of_one_masked_forward(rec, store):
    """Users of every age in one call, appended in pieces, in mixed order."""
    lengths = [1, N, N + 1, 2 * N + 3, 7 * N + 2]
    users = [100 + length for length in lengths]
    histories = [standin.history(length, length) for length in lengths]
    done = np.zeros(len(lengths), int)
    rng = np.random.default_rng(0)
    while (done < lengths).any():
        rows = []
        for u, (items, times) in enumerate(histories):
            take = int(rng.integers(0, 9))
            cut = slice(done[u], done[u] + take)
            rows += [(users[u], *event) for event in zip(items[cut], times[cut], strict=True)]
            done[u] = min(done[u] + take, lengths[u])
        rng.shuffle(rows)
        if rows:
            rec.append(store, *map(list, zip(*rows, strict=True)))
    for user, (items, times) in zip(users, histories, strict=True):
        assert_close(scores_by_item(rec, store, user), standin.expected(rec, items, times))
    # one call for all gives the same lists
    together, scores = rec.recommend(store, users, k=5)
    for user, line, values in zip(users, together, scores, strict=True):
        alone, scores_alone = rec.recommend(store, [user], k=5)
        assert line.tolist() == alone[0].tolist()
        np.testing.assert_allclose(values, scores_alone[0], rtol=1e-5)
        assert (np.diff(values) <= 0).all()


def test_nothing_recompiles_in_steady_state(tmp_path):
    rec = Recommender(standin.config(), standin.params_of(standin.config()), standin.catalog())
    store = rec.create_store(tmp_path / "states", num_shards=2, keep_seen=8)

    def day(seed):
        rng = np.random.default_rng(seed)
        for _ in range(6):
            count = int(rng.integers(5, 40))
            users = rng.integers(0, 300, count)
            events = int(rng.integers(1, 9))
            rec.append(
                store,
                np.repeat(users, events),
                rng.choice(RAW, count * events),
                ORIGIN + 1000 * seed + np.arange(count * events),
            )
            users_asking = rng.integers(0, 400, int(rng.integers(5, 50)))
            rec.recommend(store, users_asking, k=int(rng.integers(1, 12)), exclude_seen=True)
            rec.recommend(store, users_asking, k=5)

    for size in (1, 3, 9, 30, 200):  # every size of a batch, known and unknown users
        users = np.repeat(np.arange(size), N + 1)
        times = ORIGIN + np.arange(len(users))
        rec.append(store, users, rng_items(size, len(users)), times)
        for flag in (True, False):
            rec.recommend(store, np.arange(size), k=5, exclude_seen=flag)
            rec.recommend(store, np.arange(size) + 1000, k=5, exclude_seen=flag)
    warm = dict(rec.traces)
    assert set(warm) == {"extend", "query", "top_k"}
    for seed in range(1, 6):
        day(seed)
    assert dict(rec.traces) == warm


def rng_items(seed, count):
    return np.random.default_rng(seed).choice(RAW, count)


def test_unknown_users_get_what_is_popular(rec, store):
    items, scores = rec.recommend(store, [7, 8], k=4)
    np.testing.assert_array_equal(items, [RAW[:4]] * 2)  # counts fall with the id
    np.testing.assert_array_equal(scores, [[30, 29, 28, 27]] * 2)
    items, _ = rec.recommend(store, [7], k=2, exclude=RAW[:2].tolist())
    np.testing.assert_array_equal(items, [RAW[2:4]])
    items, _ = rec.recommend(store, [7], k=2, candidates=[1290, 1050, 1100])
    np.testing.assert_array_equal(items, [[1050, 1100]])


def test_unknown_items_are_skipped_and_counted(rec, store):
    items, times = standin.history(3, 6)
    done = rec.append(
        store, [1] * 7, [*items[:3], 999, *items[3:]], [*times[:3], times[3], *times[3:]]
    )
    assert done == AppendResult(events=6, users=1, unknown_items=1, late=0)
    assert_close(scores_by_item(rec, store, 1), standin.expected(rec, items, times))
    assert rec.append(store, [2], [999], [ORIGIN]) == AppendResult(0, 0, 1, 0)
    assert not store.read([2])[1][0]  # nothing is known of this user: not stored


def test_unordered_and_repeated_users_are_applied_in_time_order(rec, store):
    items, times = standin.history(4, 11)
    order = np.random.default_rng(0).permutation(11)
    rec.append(store, [5] * 11, items[order], times[order])
    assert_close(scores_by_item(rec, store, 5), standin.expected(rec, items, times))
    same = np.full(3, ORIGIN + 10**7)  # ties keep the order given
    rec.append(store, [5] * 3, items[:3], same)
    expected = standin.expected(rec, [*items, *items[:3]], [*times, *same])
    assert_close(scores_by_item(rec, store, 5), expected)


@pytest.mark.parametrize("text", [False, True])
def test_the_same_events_in_another_order_are_the_same(tmp_path, text):
    rec = standin.make(text=text)
    items, times = standin.history(6, 8)
    items = np.asarray([f"item-{i}" for i in items]) if text else items
    users = np.asarray([5, 6] * 4).astype(str if text else int)
    with rec.create_store(tmp_path / "states", num_shards=2) as store:
        assert rec.append(store, users, items, times, idempotent=True).events == 8
        before = store.read(np.unique(users))[0]
        for seed in range(3):
            order = np.random.default_rng(seed).permutation(8)
            rows = users[order], items[order], times[order]
            again = rec.append(store, *rows, idempotent=True)
            assert again == AppendResult(0, 0, 0, 0, already_applied=2)
        for name, column in store.read(np.unique(users))[0].items():
            np.testing.assert_array_equal(column, before[name])
        # another set: an event more, or one twice
        assert rec.append(store, users[:1], items[:1], times[:1], idempotent=True).events == 1
        twice = np.r_[0, :8]
        rec.append(store, users[twice], items[twice], times[twice], idempotent=True)
        assert store.read(users[:1])[0]["events"][0] > before["events"][0]


def test_events_of_overlapping_files_are_counted(rec, store):
    same = ORIGIN + 100
    assert rec.append(store, [1, 1, 2], [1000, 1010, 1000], [same, same, same]).repeated == 0
    done = rec.append(store, [1, 1, 1, 2], [1000, 1010, 1000, 1010], [same, same + 1, same, same])
    assert done == AppendResult(4, 2, 0, 0, repeated=2)


def test_an_event_older_than_the_state(rec, store):
    """Takes its place among the pending events; behind a compressed one it is left out."""
    items, times = standin.history(5, 2 * N + R)
    late = len(items) - 2
    rec.append(store, [1] * (len(items) - 1), np.delete(items, late), np.delete(times, late))
    done = rec.append(store, [1], [items[late]], [times[late]])
    assert done == AppendResult(1, 1, 0, 0)
    assert_close(scores_by_item(rec, store, 1), standin.expected(rec, items, times))
    before = store.read([1])[0]
    done = rec.append(store, [1, 2], [1000, 1010], [times[0] - 1, ORIGIN])
    assert done == AppendResult(1, 2, 0, 1)
    after = store.read([1])[0]
    for name, column in before.items():
        np.testing.assert_array_equal(column, after[name], err_msg=name)


R = N - 1 + standin.R_MIN


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (([1, 2], [1000], [ORIGIN, ORIGIN]), "differ in length: user_ids 2, item_ids 1"),
        (([1], [1000.5], [ORIGIN]), "'item_ids' has type float64"),
        (([1.0], [1000], [ORIGIN]), "'user_ids' has type float64"),
        (([1], ["1000"], [ORIGIN]), "item ids are integers"),
        (([1], [1000], [np.nan]), "'timestamps' is null, NaN or infinite in 1 rows"),
        (([1], [1000], [np.datetime64("NaT")]), "'timestamps' is null, NaN"),
        (([1], [1000], [-1]), "'timestamps' is negative"),
        (([1], [1000], [ORIGIN * 1000]), "look like milliseconds"),
        (([1], [1000], ["2024-01-01"]), "Times must be seconds"),
        (([[1]], [[1000]], [[ORIGIN]]), "one axis is needed"),
        (([1], [1000], [10**10]), "68 years|seconds from the training data"),
    ],
)
def test_events_that_cannot_be_used_change_nothing(rec, store, columns, message):
    with pytest.raises(DataError, match=message):
        rec.append(store, *columns)
    assert sum(shard.users for shard in store.stat()) == 0


def test_requests_that_cannot_be_used(rec, store):
    with pytest.raises(ValueError, match="k=0: a positive integer"):
        rec.recommend(store, [1], k=0)
    with pytest.raises(TypeError, match=r"user id 1\.5"):
        rec.recommend(store, [1.5])
    with pytest.raises(DataError, match="'now' is null, NaN"):
        rec.recommend(store, [1], now=np.nan)
    with pytest.raises(DataError, match=r"now has shape \(2,\)"):
        rec.recommend(store, [1], now=[ORIGIN, ORIGIN])
    with pytest.raises(DataError, match="exclude: 2 entries for 1 users"):
        rec.recommend(store, [1], exclude=[[1000], [1000]])
    with pytest.raises(DataError, match="item ids are integers"):
        rec.recommend(store, [1], candidates=["a"])
    for one in (1000, "1000", np.asarray(1000), np.zeros((1, 1, 1), int)):
        with pytest.raises(DataError, match=r"exclude=.*: a list of item ids is needed"):
            rec.recommend(store, [1], exclude=one)
    with pytest.raises(TypeError, match="user_ids=5: a sequence of ids is needed"):
        rec.recommend(store, 5)
    items, scores = rec.recommend(store, [], k=3)
    assert items.shape == scores.shape == (0, 3)
    assert rec.append(store, [], [], []) == AppendResult(0, 0, 0, 0)


def test_datetimes_and_fractions(rec, store):
    items, times = standin.history(8, 6)
    stamps = times.astype("datetime64[s]")
    rec.append(store, [1] * 6, items, stamps)
    assert_close(scores_by_item(rec, store, 1), standin.expected(rec, items, times))
    second = np.full(6, ORIGIN)
    rec.append(store, [2] * 6, items[::-1], (second + np.arange(6) / 10)[::-1])
    assert_close(scores_by_item(rec, store, 2), standin.expected(rec, items, second))


def test_time_of_the_request(tmp_path):
    rec = standin.make(request_time=True)
    store = rec.create_store(tmp_path / "states", num_shards=1)
    items, times = standin.history(9, 10)
    rec.append(store, [1] * 10, items, times)
    now = int(times[-1]) + 5 * 10**6
    assert_close(scores_by_item(rec, store, 1), standin.expected(rec, items, times))
    later = standin.expected(rec, items, times, now)
    assert_close(scores_by_item(rec, store, 1, now=now), later)
    assert_close(scores_by_item(rec, store, 1, now=[now]), later)
    assert_close(scores_by_item(rec, store, 1, now=np.datetime64(now, "s")), later)
    assert np.abs(later - standin.expected(rec, items, times)).max() > 1e-3


def test_text_ids(tmp_path):
    rec = standin.make(text=True)
    store = rec.create_store(tmp_path / "states", num_shards=1)
    assert rec.append(store, ["u"], ["item-1000"], [ORIGIN]).events == 1
    items, _ = rec.recommend(store, ["u", "v"], k=ITEMS + 1)
    assert items[0, -1] == ""
    assert items[1, 0] == "item-1000"
    with pytest.raises(DataError, match="user id 5: the training data's user ids are text"):
        rec.recommend(store, [5])
    with pytest.raises(DataError, match="user ids are text, not integers"):
        rec.append(store, [5], ["item-1000"], [ORIGIN])


@pytest.mark.parametrize("model", [{}, {"repeat_half_lives": (5.0,)}], ids=["plain", "repeats"])
def test_several_devices_give_the_same_lists(tmp_path, model):
    one, many = standin.make(devices=1, **model), standin.make(devices=8, **model)
    store = one.create_store(tmp_path / "states", num_shards=1, keep_seen=4)
    for user in range(3):
        items, times = standin.history(user, 3 + 6 * user)
        one.append(store, [user] * len(items), items, times)
    for options in (
        {"k": 7},
        {"k": ITEMS, "exclude_seen": True},
        {"k": 3, "candidates": [1000, 1290, 1150, 1030]},
    ):
        expected_items, expected_scores = one.recommend(store, range(5), **options)
        items, scores = many.recommend(store, range(5), **options)
        np.testing.assert_array_equal(items, expected_items)
        # of the range: a score near 0 has the rounding of those it is the difference of
        atol = 1e-6 * np.ptp(expected_scores[np.isfinite(expected_scores)])
        np.testing.assert_allclose(scores, expected_scores, rtol=0, atol=atol)
    many.append(store, [0] * 6, *[x[:6] for x in standin.history(0, 6, ORIGIN + 10**7)])


def test_repeat_aware_scores(tmp_path):
    rec = standin.make(repeat_half_lives=(5.0,))
    store = rec.create_store(tmp_path / "states", num_shards=1)
    for user, length in enumerate([2, 2 * N + 3, 6 * N]):
        items, times = standin.history(user, length)
        rec.append(store, [user] * length, items, times)
        expected = standin.expected(rec, items, times)
        assert_close(scores_by_item(rec, store, user), expected)
        some = RAW[::3].tolist()
        recommended, scores = rec.recommend(store, [user], k=len(some), candidates=some)
        np.testing.assert_allclose(
            scores[0][np.argsort(recommended[0])], expected[::3], atol=1e-5 * np.ptp(expected)
        )


def test_more_users_than_one_batch(rec, store):
    users = np.arange(BATCH + 3)
    rec.append(store, users, RAW[users % ITEMS], ORIGIN + users)
    items, _ = rec.recommend(store, users, k=1)
    for user in (0, BATCH, BATCH + 2):
        assert items[user] == rec.recommend(store, [user], k=1)[0][0]


@pytest.mark.parametrize(("encoding", "bound"), [("bfloat16", 2e-2), ("int8", 2e-2)])
def test_encodings_lose_little_and_store_a_token_once(tmp_path, encoding, bound):
    rec = standin.make()
    store = rec.create_store(tmp_path / encoding, encoding=encoding, num_shards=1)
    items, times = standin.history(11, 5 * N + 2)
    codes = []
    for cut in (slice(0, 3 * N + 1), slice(3 * N + 1, 4 * N + 1), slice(4 * N + 1, None)):
        rec.append(store, [1] * len(items[cut]), items[cut], times[cut])
        codes.append(store.read([1])[0]["tokens.k"][0])
    expected = standin.expected(rec, items, times)
    difference = np.abs(scores_by_item(rec, store, 1) - expected).max()
    assert 0 < difference < bound * np.ptp(expected)
    tokens = standin.K
    for before, after in itertools.pairwise(codes):
        np.testing.assert_array_equal(before[:, tokens:], after[:, :-tokens])
    reopened = rec.open_store(tmp_path / encoding, mode="r")
    np.testing.assert_array_equal(rec.recommend(reopened, [1])[0], rec.recommend(store, [1])[0])


def test_a_store_of_another_model_is_refused(rec, store, tmp_path):
    other = standin.make(dropout=0.3)  # not the same configuration: not the same model
    with pytest.raises(StoreError, match="belongs to another model") as refused:
        other.open_store(tmp_path / "states", mode="r")
    assert rec.version in str(refused.value)
    assert other.version in str(refused.value)
    with pytest.raises(ValueError, match="encoding='int4'"):
        rec.create_store(tmp_path / "x", encoding="int4")
    with pytest.raises(ValueError, match="keep_seen=-1"):
        rec.create_store(tmp_path / "x", keep_seen=-1)


def test_stores_are_made_as_the_config_says(tmp_path):
    settings = standin.config()
    settings.serving = ServingConfig(encoding="int8", keep_seen=3, num_shards=2)
    rec = Recommender(settings, standin.params_of(settings), standin.catalog())
    assert rec.version == standin.make().version  # the model is the same
    with rec.create_store(tmp_path / "s") as store:
        assert (store.metadata.binding.encoding, store.num_shards) == ("int8", 2)
        rec.append(store, [1], [1000], [ORIGIN])
        assert 1000 not in rec.recommend(store, [1], k=ITEMS, exclude_seen=True)[0]
    with rec.create_store(tmp_path / "t", encoding="bfloat16", keep_seen=0) as store:
        assert (store.metadata.binding.encoding, state_rows.seen_capacity(store.spec)) == (
            "bfloat16",
            0,
        )


def test_a_model_without_tokens_cannot_serve():
    full = Config()
    full.layout.mode = "full"
    with pytest.raises(ValueError, match=r"layout\.mode=compressed"):
        Recommender(full, {}, standin.catalog())


@pytest.mark.parametrize("encoding", ["float32", "int8"])
def test_tokens_kept_as_outputs_alone(tmp_path, encoding):
    rec = standin.make(state="embedding")
    store = rec.create_store(tmp_path / encoding, encoding=encoding, num_shards=1)
    items, times = standin.history(11, 5 * N + 2)
    for cut in (slice(0, 3 * N + 1), slice(3 * N + 1, None)):
        rec.append(store, [1] * len(items[cut]), items[cut], times[cut])
    expected = standin.expected(rec, items, times)
    difference = np.abs(scores_by_item(rec, store, 1) - expected).max()
    assert difference <= {"float32": 1e-5, "int8": 2e-2}[encoding] * np.ptp(expected)

    def vector_bytes(spec):
        names = ("tokens.k", "tokens.v", "tokens.outputs")
        return sum(f.nbytes for f in spec.fields if f.name in names)

    whole = standin.make().create_store(tmp_path / "kv", encoding=encoding, num_shards=1)
    kept = rec.config.model.layers - 1  # layers whose K/V a state keeps
    assert vector_bytes(whole.spec) == 2 * kept * vector_bytes(store.spec)
