"""Requests by full forward, recent window alone and stored state, in one run.

    python -m benchmarks.serving --output=results/serving.json

For every history length one model of each kind with the same sizes: `full` sees all events as
one segment (`--block` users at a time; of large batches `--full-users` are measured and scaled),
`recent` the newest window alone, `cached` the stored tokens and the same window. A request is
the query vector of each user's next event; `served` is all of `recommend`: rows read from the
store, decoded, queried, ranked over the catalog, raw ids out. Functions run in turn, compiled
and warmed up, and every call is waited for. Then the cost of an event for `extend` as histories
grow, and the bytes of a user in every form.
"""

import argparse
import dataclasses
import functools
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.benchmark import timing
from jaxrec.config import Config
from jaxrec.data.vocabulary import Vocabulary
from jaxrec.layout import SegmentLayout
from jaxrec.model import recommender, states
from jaxrec.model.recommender import Model
from jaxrec.model.token_memory import user_axes
from jaxrec.serving import Catalog, Recommender, rows
from jaxrec.serving.rows import Events
from jaxrec.state_store.forms import FORMS, decode_state
from jaxrec.types import Params, UserState

LONG = 2048  # histories beyond it are cut into longer segments
TARGETS = {"full_over_cached": {1024: 10.0, 4096: 40.0}, "cached_over_recent": 1.3}


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
    _, params = make(config, SegmentLayout.from_config(config.layout), items)
    catalog = Catalog(Vocabulary(np.arange(items)), np.arange(items + 1)[::-1].copy(), 0)
    return Recommender(config, params, catalog, devices=jax.local_devices()[:1])


def random_events(users: int, events: int, items: int, seed: int = 0) -> list[Events]:
    """Uniform items at increasing times."""
    rng = np.random.default_rng(seed)
    drawn = rng.integers(1, items + 1, (users, events)).astype(np.int32)
    times = np.sort(rng.integers(0, 3 * 10**7, (users, events)), axis=1).astype(np.int32)
    return [Events(*line) for line in zip(drawn, times, strict=True)]


def last_query(model: Model, block: int, params: Params, items: Any, times: Any) -> jax.Array:
    """[B, D] queries behind whole histories [B, T], `block` users at a time in memory."""

    def one(line: Any) -> jax.Array:
        items, times = line
        after = jnp.concatenate([times, times[:, -1:]], axis=1)
        lengths = jnp.full((items.shape[0], 1), items.shape[1], jnp.int32)
        y, _ = model.forward(params, items, model.layout, lengths, after)
        return model.queries(params, y[:, -1])

    block = min(block, items.shape[0])
    parts = jax.tree.map(lambda a: a.reshape(-1, block, a.shape[-1]), (items, times))
    return jax.lax.map(one, parts).reshape(items.shape[0], -1)


def latencies(
    functions: Mapping[str, Callable[[], Any]], seconds: float, most: int
) -> dict[str, dict[str, float]]:
    """Seconds of each function run in turn: p50, p99 and how often.

    After one warm-up every function runs until it took `seconds` or ran `most` times, three
    times at least; the slow ones drop out of the turns first.
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
            taken = samples[name]
            if len(taken) >= 3 and (sum(taken) >= seconds or len(taken) >= most):
                active.discard(name)
    return {
        name: {
            "p50_s": float(np.percentile(taken, 50)),
            "p99_s": float(np.percentile(taken, 99)),
            "runs": len(taken),
        }
        for name, taken in samples.items()
    }


def requests(args: argparse.Namespace, history: int, folder: Path) -> list[dict[str, Any]]:
    """Latency of every batch size for one history length."""
    config = config_of(args, history)
    rec = make_recommender(config, args.catalog)
    users = max(args.batches)
    window = history - config.layout.max_segments * config.layout.segment_size
    lines = random_events(users, history, args.catalog)
    store = rec.create_store(folder / f"states-{history}", num_shards=1)
    for start in range(0, users, 256):
        part = range(start, min(start + 256, users))
        rec.append_dense(store, list(part), lines[start : start + 256])
    columns, _ = store.read(range(users))
    state = decode_state(columns, "float32")
    assert (state.pending == window).all()
    whole, whole_params = make(config, SegmentLayout.full(history), args.catalog)
    recent, recent_params = make(config, SegmentLayout.full(window), args.catalog)
    full = jax.jit(functools.partial(last_query, whole, args.block))
    short = jax.jit(functools.partial(last_query, recent, max(args.batches)))
    cached = jax.jit(functools.partial(states.query, rec.model))
    items, times = (np.stack(column) for column in zip(*lines, strict=True))
    result = []
    for batch in args.batches:
        some = jax.device_put(_take(state, batch))
        # blocks follow each other, so a few of them tell what all of them take
        measured = min(batch, args.full_users)
        events = jax.device_put((items[:measured], times[:measured]))
        newest = jax.device_put((items[:batch, -window:], times[:batch, -window:]))
        asked = list(range(batch))
        found = latencies(
            {
                "full": functools.partial(full, whole_params, *events),
                "recent": functools.partial(short, recent_params, *newest),
                "cached": functools.partial(cached, rec.params, some),
                "served": functools.partial(rec.recommend, store, asked, k=10),
            },
            args.seconds,
            args.repeats,
        )
        for key in ("p50_s", "p99_s"):
            found["full"][key] *= batch / measured
        for line in found.values():
            line["users_per_s"] = batch / line["p50_s"]
        ratio = found["full"]["p50_s"] / found["cached"]["p50_s"]
        beside = found["cached"]["p50_s"] / found["recent"]["p50_s"]
        row = {
            "history": history,
            "batch": batch,
            "tokens": config.layout.max_segments * args.tokens,
            "window": window,
            "full_measured_users": measured,
            "latency": found,
            "full_over_cached": ratio,
            "cached_over_recent": beside,
        }
        result.append(row)
        ms = {name: line["p50_s"] * 1e3 for name, line in found.items()}
        print(
            f"history {history}, batch {batch}: full {ms['full']:.1f} ms, recent "
            f"{ms['recent']:.2f} ms, cached {ms['cached']:.2f} ms (p99 "
            f"{found['cached']['p99_s'] * 1e3:.2f}), served {ms['served']:.2f} ms; full/cached "
            f"{ratio:.1f}, cached/recent {beside:.2f}",
            flush=True,
        )
    return result


def _take(state: UserState, batch: int) -> UserState:
    """The first users of a batch of states."""
    first = lambda a, axis: a[:, :batch] if axis else a[:batch]  # noqa: E731
    tokens = jax.tree.map(first, state.tokens, user_axes(state.tokens))
    return jax.tree.map(lambda a: a[:batch], state)._replace(tokens=tokens)


def extend_cost(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Seconds of `extend` per new event, for users whose histories have grown ever longer."""
    config = config_of(args, max(args.histories))
    rec = make_recommender(config, args.catalog)
    batch, n = args.extend_batch, config.layout.segment_size
    extend = jax.jit(functools.partial(states.extend, rec.model))
    compress = jax.jit(functools.partial(states.compress, rec.model))
    runs = {}
    for history in (*args.histories, 2 * max(args.histories)):
        lines = random_events(batch, history + n, args.catalog, seed=history)
        items, times = (np.stack(column) for column in zip(*lines, strict=True))
        counts = np.full(batch, history, np.int32)
        state = compress(rec.params, items[:, :history], times[:, :history], counts)
        more = jax.device_put((items[:, history:], times[:, history:]))
        added = np.full(batch, n, np.int32)
        runs[str(history)] = functools.partial(extend, rec.params, state, *more, added)
    found = timing.interleaved(runs, repeats=args.extend_repeats)
    result = []
    for history, line in found.items():
        per_event = line["median_s"] / (batch * n)
        result.append({"history": int(history), "seconds_per_event": per_event, **line})
        print(f"extend behind {history} events: {per_event * 1e6:.1f} us per event", flush=True)
    costs = [line["seconds_per_event"] for line in result]
    print(f"longest over shortest history: {costs[-1] / costs[0]:.2f}", flush=True)
    return result


def bytes_per_user(args: argparse.Namespace) -> list[dict[str, Any]]:
    """A user's row in every form: vectors of tokens alone, and all of it."""
    result = []
    for history in args.histories:
        for kind in ("kv", "embedding"):
            config = config_of(args, history)
            config.model = dataclasses.replace(config.model, state=kind)
            model, _ = make(config, SegmentLayout.from_config(config.layout), 10)
            for form in FORMS:
                spec = rows.row_spec(model, form, 0)
                vectors = sum(f.nbytes for f in spec.fields if f.name in rows.TOKEN_COLUMNS)
                result.append(
                    {
                        "history": history,
                        "state": kind,
                        "form": form,
                        "vector_bytes": vectors,
                        "row_bytes": spec.row_bytes,
                    }
                )
                print(
                    f"history {history}, {kind} in {form}: {spec.row_bytes:,} bytes per user, "
                    f"{vectors:,} of them vectors",
                    flush=True,
                )
    return result


def check(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every target with what was measured and whether it is met."""
    checks = []
    for row in results:
        name = f"history {row['history']}, batch {row['batch']}"
        wanted = TARGETS["full_over_cached"].get(row["history"])  # type: ignore[attr-defined]
        if wanted is not None:
            found = row["full_over_cached"]
            checks.append((f"{name}: full/cached", found, f">= {wanted:g}", found >= wanted))
        most, found = TARGETS["cached_over_recent"], row["cached_over_recent"]
        checks.append((f"{name}: cached/recent", found, f"<= {most:g}", found <= most))
    for text, found, wanted, met in checks:
        print(f"{text} {found:.2f}, wanted {wanted}: {'met' if met else 'MISSED'}", flush=True)
    return [dict(zip(("what", "found", "wanted", "met"), line, strict=True)) for line in checks]


def main() -> None:
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
    args = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for history in args.histories:
            results += requests(args, history, Path(folder))
    extension = extend_cost(args)
    sizes = bytes_per_user(args)
    facts = {key: value for key, value in vars(args).items() if key != "output"}
    report = timing.report(
        "serving", results, settings=facts, extend=extension, bytes=sizes, targets=check(results)
    )
    timing.save(report, args.output)


if __name__ == "__main__":
    main()
