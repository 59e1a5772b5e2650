"""A small model with weights of trained size, and histories to serve."""

import dataclasses
import functools
import pathlib

import jax
import numpy as np

from jaxrec import ranking
from jaxrec.config import Config, HSTUConfig, ModelConfig
from jaxrec.data.records import Record
from jaxrec.data.vocabulary import Vocabulary
from jaxrec.layout import SegmentLayout
from jaxrec.model import recommender
from jaxrec.serving import Catalog, Recommender
from tests.model import trained

ITEMS = 30
ORIGIN = 1_600_000_000  # seconds since 1970 of the first training event
N, K, S, R_MIN = 4, 2, 3, 1
USERS = 20  # of `histories`


def config(**model):
    result = Config()
    result.layout.segment_size, result.layout.tokens = N, K
    result.layout.max_segments, result.layout.recent_min = S, R_MIN
    given = {"width": 8, "heads": 2, "layers": 2, "hstu": HSTUConfig(), **model}
    result.model = ModelConfig(**given)
    if result.model.repeat_half_lives:
        result.loss.kind = "sampled_softmax"
    return result


def catalog(text=False, items=ITEMS):
    raw = np.arange(items) * 10 + 1000
    ids = np.asarray([f"item-{i}" for i in raw]) if text else raw
    counts = np.concatenate([[0], np.arange(items, 0, -1)])
    return Catalog(Vocabulary(ids), counts, ORIGIN, text_users=text)


def params_of(config, items=ITEMS):
    layout = SegmentLayout.from_config(config.layout)
    model = recommender.build(config.model, config.loss, layout, items)
    return trained.moved(model.init(jax.random.key(0)))


@functools.cache
def make(devices=1, text=False, **model):
    """A recommender over `devices` devices; equal calls share it and what it compiled."""
    settings = config(**model)
    return Recommender(
        settings, params_of(settings), catalog(text), devices=jax.local_devices()[:devices]
    )


def history(seed, length, origin=ORIGIN):
    """Raw item ids and times of one user."""
    rng = np.random.default_rng(seed)
    items = rng.integers(0, ITEMS, length) * 10 + 1000
    return items, np.sort(rng.integers(0, 10**6, length)) + origin


def expected(rec, items, times, now=None):
    """Scores [V] of one user by one masked forward over the whole history."""
    dense = rec.catalog.vocabulary.encode(items)
    clock = np.asarray(times) - ORIGIN
    model, slots = rec.model, 8
    count = len(items)
    segments = max(count - R_MIN, 0) // N
    assert segments <= slots
    recent = model.layout.segments[-1][0]
    pending = count - segments * N
    layout = model.layout.with_segments(slots)
    line = np.zeros((1, slots * N + recent), np.int32)
    asked = np.zeros((1, slots * N + recent + 1), np.int32)
    start = (slots - segments) * N
    line[0, start : start + count] = dense
    asked[0, start : start + count] = clock
    asked[0, start + count] = clock[-1] if now is None else now - ORIGIN
    lengths = np.asarray([[0] * (slots - segments) + [N] * segments + [pending]], np.int32)
    y, _ = _masked(rec)(rec.params, line, lengths, asked)
    index = (
        layout.item_positions[slots * N + pending - 1] if pending else layout.token_positions[-1]
    )
    queries = model.queries(rec.params, y[:, index])
    kept = slice(max(segments - S, 0) * N, None)
    history = model.history_items(
        np.asarray(dense[kept])[None], np.asarray(clock[kept], np.int32)[None]
    )
    return np.asarray(ranking.scores(queries, model.item_index(rec.params), history))[0, 1:]


@functools.cache
def _masked(rec):
    layout = rec.model.layout.with_segments(8)
    return jax.jit(lambda params, items, *rest: rec.model.forward(params, items, layout, *rest))


@dataclasses.dataclass
class Histories:
    """What `build` reads of prepared data."""

    users: np.ndarray
    records: list
    vocabulary: object
    time_origin: int
    folder: pathlib.Path = pathlib.Path("prepared")

    @property
    def source(self):
        return self

    @property
    def num_users(self):
        return len(self.users)

    @property
    def lengths(self):
        return np.asarray([len(record.items) for record in self.records])

    def __getitems__(self, users):
        return [self.records[user] for user in users]


def histories(rec):
    records = []
    for user in range(USERS):
        items, times = history(user, 1 + (user * 7) % (6 * N))
        dense = rec.catalog.vocabulary.encode(items)
        records.append(Record(dense, (times - ORIGIN).astype(np.int32), None))
    return Histories(np.arange(USERS) + 50, records, rec.catalog.vocabulary, ORIGIN)
