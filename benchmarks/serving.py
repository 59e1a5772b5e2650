"""Requests by full forward, recent window alone and stored state, in one run.

    python -m benchmarks.serving --output=results/serving.json

For every history length there is one model of each kind with the same sizes. `full` sees all
events as one segment (`--block` users at a time; of large batches `--full-users` are measured and
scaled), `recent` sees the newest window only, `cached` the stored tokens and the same window. A
request computes the query vector of each user's next event. `served` is the whole of `recommend`:
rows are read from the store, decoded, queried and ranked over the catalog, raw ids come out. The
functions run in turn after compilation and a warm-up, and every call is waited for. Then follow the
cost of an event for `extend` as histories grow, and the bytes of a user in every encoding.
"""

import argparse
import dataclasses
import functools
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from jaxrec.benchmark import timing
from jaxrec.benchmark.workload import last_query, random_events, stacked
from jaxrec.config import Config
from jaxrec.data.vocabulary import Vocabulary
from jaxrec.layout import SegmentLayout
from jaxrec.model import recommender, states
from jaxrec.model.recommender import Model
from jaxrec.model.token_memory import user_axes
from jaxrec.serving import Catalog, Recommender, state_rows
from jaxrec.state_store.encodings import ENCODINGS, decode_state
from jaxrec.types import Json, Params, UserState

LONG = 2048  # longer histories are cut into longer segments
FULL_OVER_CACHED = {1024: 10.0, 4096: 40.0}  # targets by history: at least
CACHED_OVER_RECENT = 1.3  # target: at most


def config_of(args: argparse.Namespace, history: int) -> Config:
    """A compressed model whose state covers `history` events when its window is full."""
    config = Config()
    segment = args.long_segment if history > LONG else args.segment
    config.layout.segment_size, config.layout.tokens = segment, args.tokens
    config.layout.recent_min = 1
    config.layout.max_segments = max((history - 1) // segment, 1)
    config.model.backbone, config.model.width = args.backbone, args.width
    config.model.layers, config.model.heads = args.layers, args.heads
    return config


def make(config: Config, layout: SegmentLayout, items: int) -> tuple[Model, Params]:
    """A model with random weights."""
    model = recommender.build(config.model, config.loss, layout, items)
    return model, model.init(jax.random.key(0))


def make_recommender(config: Config, items: int) -> Recommender:
    """A recommender with random weights whose raw item ids are 0..items - 1."""
    _, params = make(config, SegmentLayout.from_config(config.layout), items)
    catalog = Catalog(Vocabulary(np.arange(items)), np.arange(items + 1)[::-1].copy(), 0)
    return Recommender(config, params, catalog, devices=jax.local_devices()[:1])


def latencies(
    functions: Mapping[str, Callable[[], object]], seconds: float, most: int
) -> dict[str, dict[str, float]]:
    """p50 and p99 of the seconds of each function, run in turn, and the number of runs.

    After a warm-up every function runs until it has taken `seconds` or run `most` times, but at
    least three times; slow functions drop out of the turns first.
    """
    samples: dict[str, list[float]] = {name: [] for name in functions}
    for function in functions.values():
        jax.block_until_ready(function())
    active = set(functions)
    while active:
        for name, function in functions.items():
            if name not in active:
                continue
            start = time.perf_counter()
            jax.block_until_ready(function())
            samples[name].append(time.perf_counter() - start)
            measured = samples[name]
            if len(measured) >= 3 and (sum(measured) >= seconds or len(measured) >= most):
                active.discard(name)
    return {
        name: {
            "p50_s": float(np.percentile(measured, 50)),
            "p99_s": float(np.percentile(measured, 99)),
            "runs": len(measured),
        }
        for name, measured in samples.items()
    }


class Models(NamedTuple):
    """The functions of one history length, jitted, with what they need.

    full, recent, cached: (params, ...) -> queries [B, D].
    """

    recommender: Recommender
    full: Callable[..., jax.Array]
    full_params: Params
    recent: Callable[..., jax.Array]
    recent_params: Params
    cached: Callable[..., jax.Array]


def make_models(args: argparse.Namespace, config: Config, history: int) -> Models:
    """Models of full, recent and compressed history of the same sizes."""
    rec = make_recommender(config, args.catalog)
    window = history - config.layout.max_segments * config.layout.segment_size
    full, full_params = make(config, SegmentLayout.full(history), args.catalog)
    recent, recent_params = make(config, SegmentLayout.full(window), args.catalog)
    return Models(
        rec,
        jax.jit(functools.partial(last_query, full, args.block)),
        full_params,
        jax.jit(functools.partial(last_query, recent, max(args.batches))),
        recent_params,
        jax.jit(functools.partial(states.query, rec.model)),
    )


def requests(args: argparse.Namespace, history: int, folder: Path) -> list[Json]:
    """Latency of every batch size for one history length."""
    config = config_of(args, history)
    models = make_models(args, config, history)
    rec, users = models.recommender, max(args.batches)
    window = history - config.layout.max_segments * config.layout.segment_size
    histories = random_events(users, history, args.catalog)
    store = rec.create_store(folder / f"states-{history}", num_shards=1)
    for start in range(0, users, 256):
        ids = list(range(start, min(start + 256, users)))
        rec.append_dense(store, ids, histories[start : start + 256])
    columns, _ = store.read(range(users))
    state = decode_state(columns, "float32")
    assert (state.pending == window).all()
    items, times = stacked(histories)
    result = []
    for batch in args.batches:
        # blocks of users follow each other, so a few of them tell what all of them take
        measured = min(batch, args.full_users)
        events = jax.device_put((items[:measured], times[:measured]))
        newest = jax.device_put((items[:batch, -window:], times[:batch, -window:]))
        states_of_batch = jax.device_put(_take(state, batch))
        latency = latencies(
            {
                "full": functools.partial(models.full, models.full_params, *events),
                "recent": functools.partial(models.recent, models.recent_params, *newest),
                "cached": functools.partial(models.cached, rec.params, states_of_batch),
                "served": functools.partial(rec.recommend, store, list(range(batch)), k=10),
            },
            args.seconds,
            args.repeats,
        )
        for key in ("p50_s", "p99_s"):
            latency["full"][key] *= batch / measured
        sizes = {
            "history": history,
            "batch": batch,
            "tokens": config.layout.max_segments * args.tokens,
            "window": window,
            "full_measured_users": measured,
        }
        result.append(request_row(sizes, latency))
    return result


def request_row(sizes: Json, latency: dict[str, dict[str, float]]) -> Json:
    """A row with throughput and ratios of its latencies; prints them."""
    for timed in latency.values():
        timed["users_per_s"] = sizes["batch"] / timed["p50_s"]
    median = {name: timed["p50_s"] for name, timed in latency.items()}
    full_over_cached = median["full"] / median["cached"]
    cached_over_recent = median["cached"] / median["recent"]
    ms = {name: seconds * 1e3 for name, seconds in median.items()}
    print(
        f"history {sizes['history']}, batch {sizes['batch']}: full {ms['full']:.1f} ms, recent "
        f"{ms['recent']:.2f} ms, cached {ms['cached']:.2f} ms (p99 "
        f"{latency['cached']['p99_s'] * 1e3:.2f}), served {ms['served']:.2f} ms; full/cached "
        f"{full_over_cached:.1f}, cached/recent {cached_over_recent:.2f}",
        flush=True,
    )
    return {
        **sizes,
        "latency": latency,
        "full_over_cached": full_over_cached,
        "cached_over_recent": cached_over_recent,
    }


def _take(state: UserState, batch: int) -> UserState:
    """The first users of a batch of states."""
    first = lambda a, axis: a[:, :batch] if axis else a[:batch]  # noqa: E731
    tokens = jax.tree.map(first, state.tokens, user_axes(state.tokens))
    return jax.tree.map(lambda a: a[:batch], state)._replace(tokens=tokens)


def extend_cost(args: argparse.Namespace) -> list[Json]:
    """Seconds of `extend` per new event, by the length of the history so far."""
    config = config_of(args, max(args.histories))
    rec = make_recommender(config, args.catalog)
    batch, n = args.extend_batch, config.layout.segment_size
    extend = jax.jit(functools.partial(states.extend, rec.model))
    compress = jax.jit(functools.partial(states.compress, rec.model))
    runs = {}
    for history in (*args.histories, 2 * max(args.histories)):
        items, times = stacked(random_events(batch, history + n, args.catalog, seed=history))
        counts = np.full(batch, history, np.int32)
        state = compress(rec.params, items[:, :history], times[:, :history], counts)
        more = jax.device_put((items[:, history:], times[:, history:]))
        added = np.full(batch, n, np.int32)
        runs[str(history)] = functools.partial(extend, rec.params, state, *more, added)
    result: list[Json] = []
    for history, timed in timing.interleaved(runs, repeats=args.extend_repeats).items():
        per_event = timed["median_s"] / (batch * n)
        result.append({"history": int(history), "seconds_per_event": per_event, **timed})
        print(f"extend behind {history} events: {per_event * 1e6:.1f} us per event", flush=True)
    costs = [row["seconds_per_event"] for row in result]
    print(f"longest over shortest history: {costs[-1] / costs[0]:.2f}", flush=True)
    return result


def bytes_per_user(args: argparse.Namespace) -> list[Json]:
    """Bytes of a user's row in every encoding, and of its token vectors alone."""
    result: list[Json] = []
    for history in args.histories:
        for kind in ("kv", "embedding"):
            config = config_of(args, history)
            config.model = dataclasses.replace(config.model, state=kind)
            model, _ = make(config, SegmentLayout.from_config(config.layout), 10)
            for encoding in ENCODINGS:
                spec = state_rows.row_spec(model, encoding, 0)
                vectors = sum(f.nbytes for f in spec.fields if f.name in state_rows.TOKEN_COLUMNS)
                result.append(
                    {
                        "history": history,
                        "state": kind,
                        "form": encoding,
                        "vector_bytes": vectors,
                        "row_bytes": spec.row_bytes,
                    }
                )
                print(
                    f"history {history}, {kind} in {encoding}: {spec.row_bytes:,} bytes per user, "
                    f"{vectors:,} of them vectors",
                    flush=True,
                )
    return result


def check(results: list[Json]) -> list[Json]:
    """Every target with the measured value and whether it is met."""
    checks: list[Json] = []

    def add(what: str, value: float, bound: str, met: bool) -> None:
        checks.append({"what": what, "found": value, "wanted": bound, "met": met})
        verdict = "met" if met else "MISSED"
        print(f"{what} {value:.2f}, target {bound}: {verdict}", flush=True)

    for row in results:
        name = f"history {row['history']}, batch {row['batch']}"
        least = FULL_OVER_CACHED.get(row["history"])
        if least is not None:
            ratio = row["full_over_cached"]
            add(f"{name}: full/cached", ratio, f">= {least:g}", ratio >= least)
        ratio = row["cached_over_recent"]
        add(
            f"{name}: cached/recent",
            ratio,
            f"<= {CACHED_OVER_RECENT:g}",
            ratio <= CACHED_OVER_RECENT,
        )
    return checks


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.serving", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument("--backbone", choices=["hstu", "sasrec"], default="hstu")
    parser.add_argument("--histories", nargs="+", type=int, default=[512, 1024, 4096])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 32, 256])
    parser.add_argument("--segment", type=int, default=128, help="events per segment and window")
    parser.add_argument(
        "--long-segment", type=int, default=256, help=f"the same for histories beyond {LONG}"
    )
    parser.add_argument("--tokens", type=int, default=4, help="per segment")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--catalog", type=int, default=20_000)
    parser.add_argument("--block", type=int, default=8, help="users of a full forward at once")
    parser.add_argument(
        "--full-users", type=int, default=32, help="users of a full forward measured, at most"
    )
    parser.add_argument("--seconds", type=float, default=10.0, help="per function and batch size")
    parser.add_argument("--repeats", type=int, default=200, help="calls at most")
    parser.add_argument("--extend-batch", type=int, default=32)
    parser.add_argument("--extend-repeats", type=int, default=7)
    parser.add_argument("--output", default="", help="JSON file of the result")
    return parser


def main() -> None:
    args = parser().parse_args()
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for history in args.histories:
            results += requests(args, history, Path(folder))
    extension = extend_cost(args)
    sizes = bytes_per_user(args)
    facts = {key: value for key, value in vars(args).items() if key != "output"}
    report = timing.report(
        "benchmarks.serving",
        results,
        settings=facts,
        extend=extension,
        bytes=sizes,
        targets=check(results),
    )
    timing.save(report, args.output)


if __name__ == "__main__":
    main()
